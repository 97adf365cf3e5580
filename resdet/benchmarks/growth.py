"""How cost grows with the image, the batch, the proposals, the classes and the processes: measured on a small net.

Each point is measured in processes of its own. The RPN's NMS drops nothing here, so that there are exactly as many
proposals as asked for; untrained scores pass no threshold.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from resdet.analysis.chart import Line, Panel, draw
from resdet.benchmarks.footprint import Memory, MemoryMeter
from resdet.benchmarks.nets import images_and_targets, ready_for_inference
from resdet.benchmarks.sides import LEARNING_RATE
from resdet.benchmarks.stations import wait
from resdet.benchmarks.workers import Worker
from resdet.detection.build import faster_rcnn_fpn
from resdet.engine.optim import build_optimizer
from resdet.engine.settings import Optimizer
from resdet.engine.tasks.detection import DetectionAdapter

Work = Literal["train", "infer"]
WORKS: tuple[Work, ...] = ("train", "infer")
AXES = {
    "side": (128, 192, 256, 384),
    "batch": (1, 2, 4),
    "proposals": (125, 250, 500, 1000),
    "classes": (20, 80, 1203),  # VOC, COCO, LVIS
    "processes": (1, 2),
}
SLACK = 1.25
"""Growth beyond the linear one that noise may cause."""
NOISE = 1 / 64
"""GiB that two measurements of one resident set may lie apart."""


class Point(NamedTuple):
    """What is measured."""

    side: int = 192
    """Of the square images, in pixels."""
    batch: int = 1
    """Images of a step in each process."""
    proposals: int = 250
    classes: int = 80
    processes: int = 1


class Cost(NamedTuple):
    """Of one point at one kind of work."""

    point: Point
    work: Work
    images_per_second: float
    """Of all processes."""
    memory: float
    """GiB beyond the resting process with its net, the sum of all processes."""


class GrowthJob:
    """The small net in one of a point's processes."""

    def __init__(self, point: Point, work: Work, rank: int, meeting_file: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        cuts = dict.fromkeys(("train_proposals", "test_proposals"), (point.proposals, point.proposals))
        net = faster_rcnn_fpn(
            backbone="resnet18", num_classes=point.classes, shorter_side=point.side, longer_side=point.side, **cuts
        )
        net.rpn.nms_iou = 1.0
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.work = work
        self.images, targets = images_and_targets(point.batch, (point.side, point.side))
        self.targets = [t._replace(labels=t.labels % point.classes) for t in targets]
        if work == "infer":
            ready_for_inference(self.net)
            return
        self.model = DetectionAdapter(self.net.train())
        self.optimizer = build_optimizer(self.net, Optimizer(), amp="off", lr=LEARNING_RATE)
        if point.processes > 1:
            kind = "nccl" if self.device.type == "cuda" else "gloo"
            where = {"init_method": f"file://{meeting_file}", "rank": rank, "world_size": point.processes}
            distributed.init_process_group(kind, **where)
            self.model = DistributedDataParallel(self.model)

    def measure(self, runs: int) -> tuple[float, Memory]:
        """Median seconds of a step, after one that is not timed, and the memory of all of them."""
        meter, seconds = MemoryMeter(), []
        for _ in range(runs + 1):
            started = time.perf_counter()
            if self.work == "infer":
                self.net.predict(self.images)
            else:
                losses = self.model(self.images, self.targets, mode="loss")
                self.optimizer.update_params(sum(losses.values()))
            wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:]), meter.read()


def measure(point: Point, work: Work, *, runs: int, threads: int = 1) -> Cost:
    """Cost of a point, in new processes."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        shared = (str(Path(folder) / "meeting"), threads)
        made = [Worker(GrowthJob, point, work, rank, *shared) for rank in range(point.processes)]
        workers = [stack.enter_context(worker) for worker in made]
        for worker in workers:
            worker.receive()
        for worker in workers:
            worker.send("measure", runs)
        told = [worker.receive() for worker in workers]
    rate = sum(point.batch / seconds for seconds, _ in told)
    return Cost(point, work, rate, sum(memory.peak - memory.resting for _, memory in told))


def points(base: Point | None = None) -> list[Point]:
    """One axis at a time through the base; classes also at twice the side, for four times the anchors."""
    base = base or Point()
    along = [base._replace(**{axis: value}) for axis, values in AXES.items() for value in values]
    wide = [base._replace(side=_sides(base)[1], classes=AXES["classes"][end]) for end in (0, -1)]
    return [p for p in dict.fromkeys([*along, *wide]) if p.processes == 1 or _has_place(p.processes)]


def axis_costs(costs: Sequence[Cost], axis: str, work: Work, base: Point | None = None) -> list[Cost]:
    """Those in which everything but the axis is as in the base, in its order."""
    base = base or Point()
    found = [c for c in costs if c.work == work and c.point._replace(**{axis: getattr(base, axis)}) == base]
    return sorted(found, key=lambda cost: getattr(cost.point, axis))


def check(costs: Sequence[Cost], base: Point | None = None) -> list[str]:
    """Sentences that tell, axis by axis, whether memory grows at most linearly, and what more classes cost.

    Two points say what one more of a kind costs; the last point must not cost more than that for each.
    """
    base, lines = base or Point(), []
    few, many = (AXES["classes"][end] for end in (0, -1))
    for work in WORKS:
        for axis in AXES:
            found = axis_costs(costs, axis, work, base)
            if len(found) < 3:
                continue
            x = [getattr(cost.point, axis) ** (2 if axis == "side" else 1) for cost in found]
            further = (x[-1] - x[1]) / (x[1] - x[0])
            expected = max(0.0, found[1].memory - found[0].memory) * further
            grown = found[-1].memory - found[1].memory
            verdict = "at most linear" if grown <= SLACK * expected + NOISE * further else "MORE THAN LINEAR"
            what = f"{axis} {getattr(found[1].point, axis)} to {getattr(found[-1].point, axis)}"
            lines.append(f"{work}, {what}: {grown:+.3f} GiB, linear {expected:+.3f} GiB: {verdict}")
        memory = {cost.point: cost.memory for cost in costs if cost.work == work}
        corners = [(base._replace(side=s, classes=many), base._replace(side=s, classes=few)) for s in _sides(base)]
        if all(point in memory for pair in corners for point in pair):
            narrow, wide = (memory[a] - memory[b] for a, b in corners)
            verdict = "not with them" if wide <= SLACK * max(narrow, 0.0) + NOISE else "GROWS WITH THE ANCHORS"
            extra = f"{narrow:+.3f} GiB, with 4 times the anchors {wide:+.3f} GiB"
            lines.append(f"{work}, {few} to {many} classes: {extra}: {verdict}")
    return lines


def picture(costs: Sequence[Cost], path: str | Path, *, base: Point | None = None) -> list[Path]:
    """Two PNG files, of images a second and of memory, a panel for each axis.

    Args:
        costs: as measured.
        path: ``growth.png`` stands for ``growth_speed.png`` and ``growth_memory.png``.
        base: as in :func:`points`.
    """
    path, written = Path(path), []
    for field, name, label in (("images_per_second", "speed", "images / s"), ("memory", "memory", "GiB")):
        panels = []
        for axis in AXES:
            lines = []
            for colour, work in enumerate(WORKS):
                found = axis_costs(costs, axis, work, base)
                values = [getattr(c.point, axis) for c in found]
                lines.append(Line(values, [getattr(c, field) for c in found], work, colour))
            panels.append(Panel(f"{label} by {axis}", axis, label, lines))
        written.append(draw(panels, path.with_name(f"{path.stem}_{name}.png")))
    return written


def _sides(base: Point) -> tuple[int, int]:
    return base.side, 2 * base.side


def _has_place(processes: int) -> bool:
    """Two processes cannot share a GPU in one group."""
    return not torch.cuda.is_available() or torch.cuda.device_count() >= processes
