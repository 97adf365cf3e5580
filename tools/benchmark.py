"""Time training steps and inference beside torchvision: ``python tools/benchmark.py infer train``."""

from resdet.cli import benchmark

if __name__ == "__main__":
    benchmark()
