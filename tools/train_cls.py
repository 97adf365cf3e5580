"""Train a residual net for classification: ``python tools/train_cls.py configs/resnet101_imagenet.py``."""

from resdet.cli import train

if __name__ == "__main__":
    train("classification", "Train a classification net from a config, and publish it as a backbone.")
