"""Evaluate a checkpoint or a results file: ``python tools/eval.py CONFIG CHECKPOINT``."""

from resdet.cli import evaluate

if __name__ == "__main__":
    evaluate()
