"""Train a Faster R-CNN: ``python tools/train_det.py configs/frcnn_r101_coco.py``."""

from resdet.cli import train

if __name__ == "__main__":
    train("detection", "Train a Faster R-CNN detector from a config.")
