"""A trained detector as one file for others: ``python tools/publish.py best.pth detector.safetensors``."""

from resdet.cli import publish

if __name__ == "__main__":
    publish()
