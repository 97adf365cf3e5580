"""Ours beside another framework: same weights, images and threads, each in its own process, in turns in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torchvision.ops import box_iou

from resdet.benchmarks.footprint import Memory
from resdet.benchmarks.nets import framework
from resdet.benchmarks.sides import Job, Side
from resdet.benchmarks.workers import Worker

Told = TypeVar("Told")


class Measured(NamedTuple):
    """One side."""

    seconds: float
    """Median of the timed runs."""
    first_seconds: float
    """Of the first run, which is not timed otherwise: what is compiled or searched for once is in it."""
    images_per_second: float
    memory: Memory
    of_peak: float
    """Share of the machine's measured peak, for the work of the other framework: who does less of it, or in a cleverer
    way (Winograd, pooling fewer positions), may pass 1."""
    loss: float | None
    """Of the first step, in training; each side draws its own anchors and regions."""
    profile: dict[str, float]
    """Seconds of each station, where it was asked for."""


class Row(NamedTuple):
    """One net at one kind of work."""

    side: Side
    ours: Measured
    theirs: Measured
    ratio: float
    """Median of the ratios of neighbouring runs, ours over theirs; below 1 is faster."""
    ratios: tuple[float, float]
    """The least and the largest."""
    same: float | None
    """Share of their detections that ours has, too; at inference."""
    flops: int
    """Of a step of the other framework: multiplications and additions of convolutions and matrix products."""
    peak_flops: float
    """FLOP/s of the machine, the better of two measurements, in the dtype and with the threads of the row."""
    runs: int


def compare(side: Side, *, runs: int, profile: bool = False) -> Row:
    """Measure our side and the other one.

    Args:
        side: ours.
        runs: timed runs of each, after one that is not.
        profile: measure the stations, too, in further runs.

    Raises:
        InputError: the other framework is not installed.
    """
    framework(side.beside)  # better told before two processes start
    with Worker(Job, side) as ours, Worker(Job, side._replace(ours=False)) as theirs:
        both = (ours, theirs)
        for worker in both:
            worker.receive()
        peak = theirs.ask("peak")
        first = [worker.ask("run") for worker in both]
        answers = [worker.ask("answer") for worker in both]
        mine, other = in_turns(*(lambda w=worker: w.ask("run") for worker in both), runs=runs)
        memory = [worker.ask("memory") for worker in both]
        flops = theirs.ask("flops")
        peak = max(peak, theirs.ask("peak"))
        profiles = in_turns(*(lambda w=worker: w.ask("profile") for worker in both), runs=runs if profile else 0)
    measured = []
    for place, seconds in enumerate((mine, other)):
        median = statistics.median(seconds)
        measured.append(
            Measured(
                seconds=median,
                first_seconds=first[place],
                images_per_second=side.batch_size / median,
                memory=memory[place],
                of_peak=flops / median / peak,
                loss=answers[place] if side.work == "train" else None,
                profile={
                    name: statistics.median(p[name] for p in profiles[place]) for name in (profiles[place] or [{}])[0]
                },
            )
        )
    ratios = [a / b for a, b in zip(mine, other, strict=True)]
    same = agreement(*answers) if side.work == "infer" else None
    return Row(side, *measured, statistics.median(ratios), (min(ratios), max(ratios)), same, flops, peak, runs)


def in_turns(*functions: Callable[[], Told], runs: int) -> list[list[Told]]:
    """What each function says in ``runs`` rounds; every other round goes backwards, so that nobody is always first."""
    told: list[list[Told]] = [[] for _ in functions]
    order = list(range(len(functions)))
    for _ in range(runs):
        for place in order:
            told[place].append(functions[place]())
        order.reverse()
    return told


def agreement(ours: Sequence[tuple[np.ndarray, ...]], theirs: Sequence[tuple[np.ndarray, ...]]) -> float | None:
    """Share of their detections that ours has, too: same class, IoU of 0.9 or more, scores 0.02 apart at most.

    Args:
        ours: (boxes, scores, labels) of each image.
        theirs: likewise.
    """
    found = total = 0
    for mine, other in zip(ours, theirs, strict=True):
        boxes, scores, labels = (torch.from_numpy(part) for part in mine)
        their_boxes, their_scores, their_labels = (torch.from_numpy(part) for part in other)
        like = (box_iou(their_boxes, boxes) >= 0.9) & (their_labels[:, None] == labels)
        like &= (their_scores[:, None] - scores).abs() <= 0.02
        found, total = found + int(like.any(1).sum()), total + len(their_boxes)
    return found / total if total else None


HEADINGS = ("work", "net", "seconds", "beside", "its seconds", "ratio", "GiB", "its GiB", "of peak", "its", "same")
WIDTHS = (32, 7, 8, 11, 11, 5, 5, 7, 7, 4, 5)

LEGEND = """
GiB: peak resident memory of each side's process. Of peak: share of the {:.0f} GFLOP/s that matrix products reach here,
if all the convolutions and products of the other side's way were done; Winograd and pooling fewer positions need fewer.
Same: share of its detections that ours has."""


def table_head() -> str:
    """The first lines of the table, in Markdown."""
    line = " | ".join(heading.ljust(width) for heading, width in zip(HEADINGS, WIDTHS, strict=True))
    return f"| {line} |\n|{'|'.join('-' * (width + 2) for width in WIDTHS)}|"


def table_line(row: Row) -> str:
    """A row of the table, and its stations below it where they were measured."""
    side, ours, theirs = row.side, row.ours, row.theirs
    count = f"{side.batch_size} x " if side.batch_size > 1 else ""
    how = ("" if side.amp == "off" else f" {side.amp}") + (" winograd" if side.winograd else "")
    how += "" if side.compile == "off" else f" compiled in {ours.first_seconds:.0f} s"
    cells = [f"{side.work} {count}{side.hw[0]}x{side.hw[1]}{how}", side.net, f"{ours.seconds:.3f}", side.beside]
    cells += [f"{theirs.seconds:.3f}", f"{row.ratio:.2f}", f"{ours.memory.peak:.2f}", f"{theirs.memory.peak:.2f}"]
    cells += [f"{ours.of_peak:.0%}", f"{theirs.of_peak:.0%}", "-" if row.same is None else f"{row.same:.0%}"]
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))} |"


def profile_table(row: Row) -> str:
    """Seconds of each station, ours and theirs, and their share of the step."""
    lines = [f"| {'station':<10} | resdet          | {row.side.beside:<15} |", f"|{'-' * 12}|{'-' * 17}|{'-' * 17}|"]
    for station in dict.fromkeys([*row.ours.profile, *row.theirs.profile]):
        cells = []
        for profile in (row.ours.profile, row.theirs.profile):
            seconds = profile.get(station)
            share = "" if seconds is None else f"{seconds:.4f} s {seconds / sum(profile.values()):>5.0%}"
            cells.append(share.ljust(15))
        lines.append(f"| {station:<10} | {' | '.join(cells)} |")
    return "\n".join(lines)
