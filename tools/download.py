"""Published data sets into the folders that configs look in: ``python tools/download.py voc2007 voc2012``."""

from resdet.cli import download

if __name__ == "__main__":
    download()
