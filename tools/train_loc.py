"""Train a localizer of either stage: ``python tools/train_loc.py configs/loc_r101_imagenet.py``."""

from resdet.cli import train

if __name__ == "__main__":
    train("localization", "Train a localizer (the paper's appendix C, either stage) from a config.")
