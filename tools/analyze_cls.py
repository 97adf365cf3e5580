"""What residual nets do inside, and where they err: ``python tools/analyze_cls.py lesions CONFIG CHECKPOINT``."""

from resdet.cli import analyze

if __name__ == "__main__":
    analyze()
