"""``tools/download.py``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from resdet.cli.running import run

if TYPE_CHECKING:
    from resdet.datasets.download import Watch

NAMES = ("voc2007", "voc2012", "coco2017", "cifar10", "cifar100")
IMAGENET = (
    "an account at https://image-net.org/download, where its terms are agreed to; then ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar, unpacked as data/imagenet/train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (data/README.md)"
)


def download(arguments: Sequence[str] | None = None) -> None:
    """``tools/download.py``."""
    parser = argparse.ArgumentParser(
        description="Fetch published data sets and unpack them where configs look for them. Sizes are told first; what "
        "is there is passed over, and a broken download goes on where it broke."
    )
    choices = (*NAMES, "imagenet")
    explained = f"{', '.join(NAMES)}; imagenet tells how to get it"
    parser.add_argument("sets", nargs="+", choices=choices, metavar="SET", help=explained)
    parser.add_argument("--root", default="data", metavar="DIR", help="folder of all data sets (default: data)")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.datasets.download import SETS, download
        from resdet.errors import InputError

        parts = [part for name in dict.fromkeys(args.sets) if name != "imagenet" for part in SETS[name]]
        if parts:
            try:
                with _bar() as watch:
                    download(parts, args.root, watch=watch)
            except KeyboardInterrupt:
                sys.exit("\nstopped; the same command goes on")
        if "imagenet" in args.sets:
            raise InputError("imagenet", found="a data set behind a login", needed=IMAGENET)

    run(main, choose_threads=False)


@contextmanager
def _bar() -> Iterator[Watch]:
    """A bar with bytes, speed and time left on a terminal; elsewhere a line every so often."""
    if not sys.stdout.isatty():
        yield _lines()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def watch(doing: str, done: int, total: int) -> None:
            for finished in [name for name in tasks if name != doing]:
                bar.remove_task(tasks.pop(finished))
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=total, completed=done)
            bar.update(tasks[doing], completed=done)

        yield watch


def _lines() -> Watch:
    from resdet.datasets.download import in_words
    from resdet.engine.progress import LINE_EVERY, clock

    began: dict[str, tuple[float, int]] = {}
    last = [time.perf_counter()]

    def watch(doing: str, done: int, total: int) -> None:
        now = time.perf_counter()
        start, first = began.setdefault(doing, (now, done))
        if now - last[0] >= LINE_EVERY and done > first:
            left = clock((now - start) / (done - first) * (total - done))
            print(f"{doing}: {in_words(done)} of {in_words(total)}, {left} left", file=sys.stderr, flush=True)
            last[0] = now

    return watch
