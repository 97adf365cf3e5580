"""``python -m resdet.cli`` checks the environment and does nothing else."""

from resdet.cli.running import run

if __name__ == "__main__":
    run(lambda: None)
