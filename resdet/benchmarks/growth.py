"""How cost grows with the image, the batch, the proposals, the classes and the processes: measured on a small net.

Each point is measured in processes of its own. The RPN's NMS drops nothing here, so that there are exactly as many
proposals as asked for; untrained scores pass no threshold.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from resdet.analysis.chart import Line, Panel, draw
from resdet.benchmarks.jobs import Job, inference, training
from resdet.benchmarks.nets import images_and_targets, ready_for_inference
from resdet.benchmarks.workers import Worker
from resdet.detection.build import faster_rcnn_fpn
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

    @property
    def axes(self) -> str:
        """The point as cells of a table."""
        return " | ".join(f"{value:<{len(axis)}}" for axis, value in self.point._asdict().items())


COLUMNS = {
    "work ": "{.work}",
    " | ".join(Point._fields): "{.axes}",
    "images/s": "{.images_per_second:.2f}",
    "GiB    ": "{.memory:.3f}",
}


def growth_job(point: Point, work: Work, rank: int, meeting_file: str) -> Job:
    """The small net in one of a point's processes."""
    torch.manual_seed(0)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    cuts = dict.fromkeys(("train_proposals", "test_proposals"), (point.proposals, point.proposals))
    net = faster_rcnn_fpn(
        backbone="resnet18", num_classes=point.classes, shorter_side=point.side, longer_side=point.side, **cuts
    )
    net.rpn.nms_iou = 1.0
    net = net.to(device, memory_format=torch.channels_last)
    images, targets = images_and_targets(point.batch, (point.side, point.side))
    if work == "infer":
        ready_for_inference(net)
        return inference(net, lambda: net.predict(images))
    targets = [t._replace(labels=t.labels % point.classes) for t in targets]
    model = DetectionAdapter(net.train())
    if point.processes > 1:
        kind = "nccl" if device.type == "cuda" else "gloo"
        where = {"init_method": f"file://{meeting_file}", "rank": rank, "world_size": point.processes}
        distributed.init_process_group(kind, **where)
        model = DistributedDataParallel(model)
    return training(net, lambda: model(images, targets, mode="loss"))


def measure(point: Point, work: Work, *, runs: int, threads: int = 1) -> Cost:
    """Cost of a point, in new processes: the median of the runs, after one that is not timed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        meeting = str(Path(folder) / "meeting")
        made = [Worker(growth_job, point, work, rank, meeting, threads=threads) for rank in range(point.processes)]
        workers = [stack.enter_context(worker) for worker in made]
        for worker in workers:
            worker.built()
        asked = [[worker.send("run") for _ in range(runs + 1)] for worker in workers]
        seconds = [statistics.median([run.result() for run in each][1:]) for each in asked]
        memory = [worker.ask("memory") for worker in workers]
    return Cost(point, work, sum(point.batch / each for each in seconds), sum(m.peak - m.resting for m in memory))


BASE = Point()
CORNERS = [
    tuple(BASE._replace(side=side, classes=AXES["classes"][end]) for end in (0, -1))
    for side in (BASE.side, 2 * BASE.side)
]
"""Few and many classes, at the base's side and at twice that, for four times the anchors."""


def points() -> list[Point]:
    """One axis at a time through the base, and :data:`CORNERS`; two processes of a group cannot share a GPU."""
    along = [BASE._replace(**{axis: value}) for axis, values in AXES.items() for value in values]
    most = torch.cuda.device_count() if torch.cuda.is_available() else math.inf
    return [p for p in dict.fromkeys([*along, *CORNERS[1]]) if p.processes == 1 or p.processes <= most]


def axis_costs(costs: Sequence[Cost], axis: str, work: Work) -> list[Cost]:
    """Those in which everything but the axis is as in the base, in its order."""
    found = [c for c in costs if c.work == work and c.point._replace(**{axis: getattr(BASE, axis)}) == BASE]
    return sorted(found, key=lambda cost: getattr(cost.point, axis))


def check(costs: Sequence[Cost]) -> list[str]:
    """Sentences that tell, axis by axis, whether memory grows at most linearly, and what more classes cost.

    Two points say what one more of a kind costs; the last point must not cost more than that for each.
    """
    lines = []
    for work in WORKS:
        for axis in AXES:
            found = axis_costs(costs, axis, work)
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
        if all(point in memory for pair in CORNERS for point in pair):
            narrow, wide = (memory[many] - memory[few] for few, many in CORNERS)
            verdict = "not with them" if wide <= SLACK * max(narrow, 0.0) + NOISE else "GROWS WITH THE ANCHORS"
            extra = f"{narrow:+.3f} GiB, with 4 times the anchors {wide:+.3f} GiB"
            lines.append(f"{work}, {AXES['classes'][0]} to {AXES['classes'][-1]} classes: {extra}: {verdict}")
    return lines


def picture(costs: Sequence[Cost], path: str | Path) -> list[Path]:
    """Two PNG files with a panel for each axis: of ``growth.png``, ``growth_speed.png`` and ``growth_memory.png``."""
    path, written = Path(path), []
    for field, name, label in (("images_per_second", "speed", "images / s"), ("memory", "memory", "GiB")):
        panels = []
        for axis in AXES:
            curves = [(work, axis_costs(costs, axis, work)) for work in WORKS]
            lines = [
                Line([getattr(c.point, axis) for c in found], [getattr(c, field) for c in found], work, colour)
                for colour, (work, found) in enumerate(curves)
            ]
            panels.append(Panel(f"{label} by {axis}", axis, label, lines))
        written.append(draw(panels, path.with_name(f"{path.stem}_{name}.png")))
    return written
