"""``resdet demo`` and ``resdet demo-loc``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.running import run


def demo(arguments: Sequence[str] | None = None) -> None:
    """``resdet demo``."""
    argparse.ArgumentParser(description="Pre-train, train and draw a detector on a data set that is drawn.").parse_args(
        arguments
    )

    def main() -> None:
        from resdet.studies.demo import demo

        demo()

    run(main)


def demo_localization(arguments: Sequence[str] | None = None) -> None:
    """``resdet demo-loc``."""
    parser = argparse.ArgumentParser(description="Train small localizers; Tables 13 and 14 beside.")
    parser.add_argument("--members", type=int, default=1, metavar="N", help="nets of each stage; 2 add an ensemble")
    args = parser.parse_args(arguments)
    if args.members < 1:
        parser.error(f"--members {args.members}: at least 1")

    def main() -> None:
        from resdet.studies.demo_localization import demo

        demo(members=args.members)

    run(main)
