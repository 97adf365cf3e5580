"""Ours beside another framework: same weights, images and threads, each in its own process, in turns in one run."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from resdet.analysis import tables
from resdet.benchmarks.clock import in_turns
from resdet.benchmarks.footprint import Memory
from resdet.benchmarks.jobs import Amp, Job, inference, training
from resdet.benchmarks.nets import build_theirs, framework, images_and_targets, ready_for_inference
from resdet.benchmarks.runtimes import RUNTIMES, check, runtime_job
from resdet.benchmarks.workers import Worker
from resdet.cpu.memory import keep_freed_memory
from resdet.engine.compiled import compile_parts, use_winograd_in_training


class Side(NamedTuple):
    """What a process is to measure."""

    ours: bool
    beside: str
    """The framework whose weights both sides have; of :data:`resdet.benchmarks.frameworks.FRAMEWORKS`."""
    net: str
    """Of :data:`resdet.benchmarks.frameworks.NETS`."""
    work: Literal["infer", "train"]
    hw: tuple[int, int]
    batch_size: int
    amp: Amp = "off"
    winograd: bool = False
    """In our net."""
    compile: str = "off"
    """Our net (:mod:`resdet.engine.compiled`)."""
    keep_memory: bool = False
    """Our side keeps freed memory (:mod:`resdet.cpu.memory`); the other runs as shipped."""
    threads: int | None = None


def side_job(side: Side) -> Job:
    """The net of a side, ready to run."""
    if side.beside in RUNTIMES and not side.ours:
        return runtime_job(side.beside, side.net, side.hw, batch_size=side.batch_size, threads=side.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frame = framework(side.beside)
    net = build_theirs(side.beside, side.net, side.hw, device)
    if side.ours:
        net = frame.twin(net, side.net, side.hw).to(device)
    net = net.train(side.work == "train")
    if side.ours and side.work == "infer":
        net = ready_for_inference(net, winograd=side.winograd)
    elif side.ours and side.winograd:
        use_winograd_in_training(net, device)
    if side.ours or device.type == "cuda":  # theirs as shipped on a CPU; on a GPU as whoever wants speed runs it
        net = net.to(memory_format=torch.channels_last)
    if side.ours:
        compile_parts(net, side.compile)
    images, targets = images_and_targets(side.batch_size, side.hw)
    gc.collect()
    if side.ours and side.keep_memory:  # what was left over from theirs is not kept
        keep_freed_memory()
    if side.work == "infer":
        return inference(net, lambda: net.predict(images) if side.ours else frame.detect(net, images), amp=side.amp)
    losses = (lambda: net.loss(images, targets)) if side.ours else (lambda: frame.losses(net, images, targets))
    return training(net, losses, amp=side.amp, plain=not side.ours)


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
    """Of a step of the other framework: multiplications and additions of convolutions and matrix products. Beside a
    runtime of ours, which has the same graph."""
    peak_flops: float
    """FLOP/s of the machine, the better of two measurements, in the dtype and with the threads of the row."""
    runs: int

    @property
    def work(self) -> str:
        """What was done, in words."""
        side = self.side
        count = f"{side.batch_size} x " if side.batch_size > 1 else ""
        how = ("" if side.amp == "off" else f" {side.amp}") + (" winograd" if side.winograd else "")
        how += "" if side.compile == "off" else f" compiled in {self.ours.first_seconds:.0f} s"
        return f"{side.work} {count}{side.hw[0]}x{side.hw[1]}{how}"

    @property
    def share(self) -> str:
        """:attr:`same`, in words."""
        return "-" if self.same is None else f"{self.same:.0%}"


def check_side(side: Side) -> None:
    """Refuse a framework that is not installed, or that cannot do such work.

    Raises:
        InputError: so it is.
    """
    framework(side.beside)
    check(side.beside, work=side.work, amp=side.amp)


def compare(side: Side, *, runs: int, profile: bool = False) -> Row:
    """Measure our side and the other one.

    Args:
        side: ours.
        runs: timed runs of each, after one that is not.
        profile: measure the stations, too, in further runs.

    Raises:
        InputError: the other framework is not installed, or not made for such work.
    """
    check_side(side)  # better told before two processes start
    sides = (side, side._replace(ours=False))
    with (
        Worker(side_job, sides[0], threads=side.threads) as ours,
        Worker(side_job, sides[1], threads=side.threads) as theirs,
    ):
        both = [worker.built() for worker in (ours, theirs)]
        peak = theirs.ask("peak", side.amp)
        first = [worker.ask("run") for worker in both]
        answers = [worker.ask("answer") for worker in both]
        seconds = in_turns(*(lambda w=worker: w.ask("run") for worker in both), runs=runs)
        memory = [worker.ask("memory") for worker in both]
        flops = theirs.ask("flops") or ours.ask("flops")  # what a runtime does torch does not see
        peak = max(peak, theirs.ask("peak", side.amp))
        profiles = in_turns(*(lambda w=worker: w.ask("profile") for worker in both), runs=runs if profile else 0)
    medians = [statistics.median(each) for each in seconds]
    measured = [
        Measured(
            seconds=median,
            first_seconds=first[place],
            images_per_second=side.batch_size / median,
            memory=memory[place],
            of_peak=flops / median / peak,
            loss=answers[place] if side.work == "train" else None,
            profile=median_profile(profiles[place]),
        )
        for place, median in enumerate(medians)
    ]
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    same = agreement(*answers) if side.work == "infer" else None
    return Row(side, *measured, statistics.median(ratios), (min(ratios), max(ratios)), same, flops, peak, runs)


def median_profile(profiles: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each station the median over the runs."""
    return {name: statistics.median(p[name] for p in profiles) for name in (profiles or [{}])[0]}


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


COLUMNS = {
    "work                            ": "{.work}",
    "net    ": "{.side.net}",
    "seconds ": "{.ours.seconds:.3f}",
    "beside     ": "{.side.beside}",
    "its seconds": "{.theirs.seconds:.3f}",
    "ratio": "{.ratio:.2f}",
    "GiB  ": "{.ours.memory.peak:.2f}",
    "its GiB": "{.theirs.memory.peak:.2f}",
    "of peak": "{.ours.of_peak:.0%}",
    "its ": "{.theirs.of_peak:.0%}",
    "same ": "{.share}",
}
LEGEND = """
GiB: peak resident memory of each side's process. Of peak: share of the {:.0f} GFLOP/s that matrix products reach here,
if all the convolutions and products of the other side's way were done; Winograd and pooling fewer positions need fewer.
Same: share of its detections that ours has."""


def profile_table(row: Row) -> str:
    """Seconds of each station, ours and theirs, and their share of the step."""
    profiles = (row.ours.profile, row.theirs.profile)
    lines = [["station", "resdet", row.side.beside]]
    for station in {**profiles[0], **profiles[1]}:
        spent = [f"{p[station]:.4f} s {p[station] / sum(p.values()):>5.0%}" if station in p else "" for p in profiles]
        lines.append([station, *spent])
    return tables.markdown(lines)
