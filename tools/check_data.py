"""All that is wrong with a data set: ``python tools/check_data.py --data FOLDER``."""

from resdet.cli import check_data

if __name__ == "__main__":
    check_data()
