"""Contact sheets of a data set: ``python tools/browse.py --data FOLDER``."""

from resdet.cli import browse

if __name__ == "__main__":
    browse()
