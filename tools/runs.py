"""All runs below a folder, and what two of them differ in: ``python tools/runs.py work_dirs [--diff A B]``."""

from resdet.cli import runs

if __name__ == "__main__":
    runs()
