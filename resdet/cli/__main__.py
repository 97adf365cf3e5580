"""``python -m resdet.cli``: see :mod:`resdet.cli.demos`."""

from resdet.cli.demos import demos

if __name__ == "__main__":
    demos()
