"""What each step of the paper's appendix B does to one image, in a picture each: ``tools/show_steps.py``.

The pictures of ``docs/appendix_b.md`` are made here. They show what the stages of a real prediction gave; nothing of it
is computed in another way. Boxes are drawn in the frame in which the net saw them, the image stretched below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from resdet import boxes as box_ops
from resdet.api import to_tensor
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.tasks.detection import load_detector
from resdet.errors import InputError
from resdet.inference.refinement import regressed
from resdet.inference.settings import PAPER_SCALES, TestSettings
from resdet.structures import ScoredBoxes
from resdet.studies.looks import draw_ensemble, draw_multiscale, draw_suppression
from resdet.studies.panels import (
    BLUE,
    GREEN,
    MOST,
    ORANGE,
    PINK,
    SURE,
    WHITE,
    Subject,
    add_legend,
    ask,
    draw_detections,
    observe,
    outline,
    save,
    sheet,
    zoom,
)

REFINED = TestSettings(refine=1, vote=0.5, nms_iou=0.3, score_threshold=SURE)
"""The paper's box refinement and voting."""


def show_steps(
    checkpoint: str | Path,
    image: str | Path,
    *,
    context: str | Path | None = None,
    ensemble: Sequence[str | Path] = (),
    scales: Sequence[int] = PAPER_SCALES,
    region_side: float = 224.0,
    out: str | Path = "steps",
) -> list[Path]:
    """Draw the steps, on the CPU.

    Args:
        checkpoint: of a net without global context; it tells its own net.
        image: a file in which it finds something.
        context: of a net with global context; without one there is no picture of that step.
        ensemble: of further nets; without any there is no picture of that step.
        scales: of multi-scale testing, the paper's by default.
        region_side: at which regions are seen best.
        out: folder of the pictures.

    Returns:
        The files written.

    Raises:
        InputError: a file is missing or damaged, a net has other classes or not the context asked for, the scales do
            not rise, or the net finds no object.
    """
    TestSettings(scales=tuple(scales), region_side=region_side)  # refuses what makes no sense
    pixels = to_tensor(image)
    classes = tuple(read_checkpoint(checkpoint)["meta"]["classes"])
    subject = Subject(_load(checkpoint, classes, context=False), pixels, classes)
    wider = None if context is None else _load(context, classes, context=True)
    further = [_load(path, classes) for path in ensemble]
    with torch.no_grad():
        figures = {"1_baseline": draw_baseline(subject, image)}
        figures["2_refinement"] = draw_refinement(subject)
        figures["3_voting"] = draw_voting(subject)
        if wider is not None:
            figures["4_context"] = draw_context(subject, wider)
        figures["5_multiscale"] = draw_multiscale(subject, tuple(scales), region_side)
        if further:
            figures["6_ensemble"] = draw_ensemble(subject, further)
        figures["7_suppression"] = draw_suppression(subject)
    return [save(figure, Path(out) / f"{name}.jpg") for name, figure in figures.items()]


def _load(path: str | Path, classes: Sequence[str], *, context: bool | None = None) -> FasterRCNN:
    net = load_detector(path, classes).eval()
    if context is not None and net.roi_head.has_context != context:
        kinds = {True: "a net with global context", False: "a net without global context"}
        raise InputError(f"checkpoint {path}", found=kinds[not context], needed=kinds[context])
    return net


def draw_baseline(subject: Subject, source: object) -> Figure:
    """Proposals, and the detections that the head and NMS make of them."""
    given = observe(subject, [subject.net], TestSettings(score_threshold=SURE))
    (view,), proposals, found = given.views, given.proposals, given.kept
    if not len(found.boxes):
        needed = "an image in which the net finds something"
        raise InputError(f"image {source}", found=f"no object with a score above {SURE}", needed=needed)
    figure, axes = sheet(subject, view.frame, 2, "Baseline: regions first, then what is in each")
    axes[0].set_title(f"RPN: the best {len(proposals[:MOST])} of {len(proposals)} proposals, no classes yet")
    outline(axes[0], proposals[:MOST], WHITE, width=1)
    axes[1].set_title(f"head and NMS: {len(found.boxes)} detections with their scores")
    draw_detections(axes[1], found, subject.classes)
    return figure


def draw_refinement(subject: Subject) -> Figure:
    """For each of some objects the region whose box the second look moved most."""
    given = observe(subject, [subject.net], REFINED)
    (view,), proposals, first = given.views, given.proposals, given.first
    union, found = given.scored, given.kept
    second = ScoredBoxes(*(part[len(proposals) :] for part in union))
    once, twice = regressed(first), regressed(second)
    score, label = first.probabilities.max(1)
    again, same = second.probabilities.max(1)
    steady = box_ops.iou(once[:, None], twice[:, None])[:, 0, 0]
    chosen = []
    for box, kind in zip(found.boxes, found.labels, strict=True):
        here = (label == kind) & (same == kind) & (score > SURE) & (box_ops.iou(once, box[None])[:, 0] >= 0.5)
        if here.any():
            chosen.append(int(torch.where(here, steady, 2.0).argmin()))
    chosen = sorted(set(chosen), key=lambda row: float(steady[row]))[:3] or [int(score.argmax())]
    title = "Box refinement: look again from the box just found"
    figure, axes = sheet(subject, view.frame, len(chosen), title)
    for panel, row in zip(axes, chosen, strict=True):
        trio = torch.stack([proposals[row], once[row], twice[row]])
        for box, colour, style in zip(trio, (WHITE, ORANGE, GREEN), ("--", "-", "-"), strict=True):
            outline(panel, box[None], colour, width=2.5, style=style)
        zoom(panel, trio, view.frame)
        name = subject.classes[int(label[row])]
        panel.set_title(f"{name}: score {score[row]:.2f} → {again[row]:.2f}")
        overlap = box_ops.iou(trio, trio)
        panel.set_xlabel(f"IoU {overlap[0, 1]:.2f}, then {overlap[1, 2]:.2f}", fontsize=12)
    entries = [("proposal", WHITE, "--"), ("first box", ORANGE, "-"), ("second box", GREEN, "-")]
    add_legend(figure, entries, title="IoU: of each box with the one before it")
    return figure


def draw_voting(subject: Subject) -> Figure:
    """The object that voting moves most: who votes, and the box before and after."""
    given = observe(subject, [subject.net], REFINED)
    (view,), union = given.views, given.scored
    before, after = given.kept, given.voted
    row = int(box_ops.iou(before.boxes[:, None], after.boxes[:, None])[:, 0, 0].argmin())
    old, new, kind = before.boxes[row : row + 1], after.boxes[row : row + 1], int(before.labels[row])
    boxes, scores = union.boxes[:, kind % union.boxes.shape[1]], union.probabilities[:, kind]
    voters = box_ops.iou(boxes, old)[:, 0] >= REFINED.vote
    boxes, scores = boxes[voters], scores[voters]
    figure, axes = sheet(subject, view.frame, 2, f"Box voting: the neighbours place the box ({subject.classes[kind]})")
    axes[0].set_title(f"{len(boxes)} boxes vote, the stronger the higher their score")
    outline(axes[0], boxes, PINK, width=1.5, opacity=scores)
    axes[1].set_title(f"before and after: IoU {float(box_ops.iou(old, new)):.2f}")
    outline(axes[1], old, ORANGE, width=2.5)
    outline(axes[1], new, GREEN, width=2.5)
    for panel in axes:
        zoom(panel, torch.cat([old, new]), view.frame)
    add_legend(figure, [("voter", PINK, "-"), ("kept by NMS", ORANGE, "-"), ("after the vote", GREEN, "-")])
    return figure


def draw_context(subject: Subject, wider: FasterRCNN) -> Figure:
    """The answers of a net without and of one with context, and the box of which they think most differently."""
    settings = TestSettings(score_threshold=SURE)
    sides = [observe(subject, [net], settings) for net in (subject.net, wider)]
    views = [given.views[0] for given in sides]
    common = views[0].frame
    found = [given.kept for given in sides]
    found[1] = found[1]._replace(boxes=found[1].boxes / views[1].scale_from(common)[0])
    boxes = torch.cat([answer.boxes for answer in found])
    opinions = torch.stack([ask(view, boxes, common).probabilities for view in views])
    row = int((opinions[0] - opinions[1]).abs().sum(1).argmax())
    figure, axes = sheet(subject, common, 2, "Global context: the whole image helps to name each region", extra=0.75)
    for panel, answer, name in zip(axes, found, ("without context", "with context"), strict=False):
        panel.set_title(name)
        draw_detections(panel, answer, subject.classes)
        around = boxes[row : row + 1] + torch.tensor([-4.0, -4.0, 4.0, 4.0])
        outline(panel, around, WHITE, width=2.5, style=":")
    best, kinds = opinions[:, row].max(0).values.sort(descending=True)
    kinds = kinds[best > 0.01][:3].flip(0)
    bars = axes[2]
    for offset, opinion, colour, name in zip(
        (0.2, -0.2), opinions[:, row], (ORANGE, BLUE), ("without", "with"), strict=True
    ):
        places = [place + offset for place in range(len(kinds))]
        bars.barh(places, opinion[kinds].tolist(), height=0.36, color=colour, label=name)
        for place, value in zip(places, opinion[kinds].tolist(), strict=True):
            bars.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=12)
    bars.set_yticks(range(len(kinds)), [subject.classes[int(kind)] for kind in kinds])
    bars.set(xlim=(0, 1.25), xticks=(), title="scores of the dotted box")
    bars.spines[:].set_visible(False)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=13)
    return figure
