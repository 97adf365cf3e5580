"""The paper's Table 9 for your checkpoints: ``python tools/ladder.py CONFIG --baseline FILE --context FILE``."""

from resdet.cli import ladder

if __name__ == "__main__":
    ladder()
