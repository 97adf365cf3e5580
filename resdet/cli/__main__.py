"""``python -m resdet.cli``: see :mod:`resdet.cli.commands`."""

from resdet.cli.commands import commands

if __name__ == "__main__":
    commands()
