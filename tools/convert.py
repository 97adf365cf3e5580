"""Turn a foreign checkpoint into one of ours: ``python tools/convert.py SOURCE OUT``."""

from resdet.cli import convert

if __name__ == "__main__":
    convert()
