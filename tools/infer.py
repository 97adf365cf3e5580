"""Detect objects in images and folders: ``python tools/infer.py CONFIG CHECKPOINT IMAGES...``."""

from resdet.cli import infer

if __name__ == "__main__":
    infer()
