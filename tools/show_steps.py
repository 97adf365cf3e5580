"""What each step of appendix B does to an image: ``python tools/show_steps.py CHECKPOINT IMAGE --out DIR``."""

from resdet.cli import show_steps

if __name__ == "__main__":
    show_steps()
