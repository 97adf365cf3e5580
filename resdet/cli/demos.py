"""``python -m resdet.cli demo`` and ``demo-loc``; without a name, the environment is checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.running import run


def demos(arguments: Sequence[str] | None = None) -> None:
    """Run a demo."""
    parser = argparse.ArgumentParser(prog="python -m resdet.cli", description="Demos on data sets that are drawn.")
    commands = parser.add_subparsers(dest="command", metavar="{demo,demo-loc}")
    commands.add_parser("demo", help="pre-train, train and draw a detector")
    second = commands.add_parser("demo-loc", help="train small localizers; Tables 13 and 14 beside")
    second.add_argument("--members", type=int, default=1, metavar="N", help="nets of each stage; 2 add an ensemble")
    args = parser.parse_args(arguments)
    if args.command == "demo-loc" and args.members < 1:
        parser.error(f"--members {args.members}: at least 1")
    run(lambda: _call(args))


def _call(args: argparse.Namespace) -> None:
    if args.command == "demo":
        from resdet.studies.demo import demo

        demo()
    elif args.command == "demo-loc":
        from resdet.studies.demo_localization import demo as demo_localization

        demo_localization(members=args.members)
