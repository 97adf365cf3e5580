"""``resdet demo`` and ``resdet demo-loc``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.arguments import at_least
from resdet.cli.running import run


def demo(arguments: Sequence[str] | None = None) -> None:
    """``resdet demo``."""
    parser = argparse.ArgumentParser(description="Pre-train, train and draw a detector on a data set that is drawn.")
    parser.parse_args(arguments)

    def main() -> None:
        from resdet.studies.demo import demo

        demo()

    run(main)


def demo_localization(arguments: Sequence[str] | None = None) -> None:
    """``resdet demo-loc``."""
    parser = argparse.ArgumentParser(description="Train small localizers; Tables 13 and 14 beside.")
    explained = "nets of each stage; 2 add an ensemble"
    parser.add_argument("--members", type=at_least(1), default=1, metavar="N", help=explained)
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.studies.demo_localization import demo

        demo(members=args.members)

    run(main)
