"""The steps of appendix B that take more than one look, in a picture each: scales, nets, mirrored images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from resdet import boxes as box_ops
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.inference.look import looks
from resdet.inference.multiscale import adjacent_scales, embed_maxout
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.inference.view import View, Views, flatten, side
from resdet.structures import Detections
from resdet.studies.panels import (
    MOST,
    NET_COLOURS,
    SURE,
    WHITE,
    Subject,
    add_legend,
    ask,
    draw_detections,
    new_figure,
    observe,
    outline,
    sheet,
    show_image,
    tag,
    zoom,
)

FURTHER_SIZE = 1.25
"""Of the last picture, as a multiple of the net's own size."""
MERGED = "these looks merged by WBF"


def draw_multiscale(subject: Subject, scales: Sequence[int], region_side: float) -> Figure:
    """A small, a middle and a large object on the pyramid, each outlined on the two scales where it is pooled."""
    given = observe(subject, [subject.net], TestSettings(score_threshold=SURE))
    (own,), found = given.views, given.kept
    order = side(found.boxes).argsort()
    rows = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])}, key=order.tolist().index)
    boxes, labels = found.boxes[rows], found.labels[rows]
    pyramid = [View(subject.net, [subject.image], size) for size in scales]
    sides = torch.stack([side(boxes * view.scale_from(own.frame)) for view in pyramid], dim=1)
    first = adjacent_scales(sides, region_side)
    images = torch.arange(len(rows))
    vectors = embed_maxout(pyramid, *flatten([boxes]), own.context, own.frame, region_side=region_side)
    both = subject.net.classify(vectors).logits.softmax(1)[images, labels]
    alone = ask(own, boxes, own.frame).probabilities[images, labels]

    sizes = [view.frame.input_hw[0] for view in pyramid]
    gap = 0.03 * sum(width for _, width in sizes)
    total, tall = sum(width + gap for _, width in sizes) - gap, max(height for height, _ in sizes)
    figure = new_figure(
        11, 11 * tall / total + 1.3, "Multi-scale testing: each region on the two scales that suit it best"
    )
    axes = figure.subplots()
    axes.axis("off")
    left = 0.0
    for level, ((height, width), size) in enumerate(zip(sizes, scales, strict=True)):
        show_image(axes, subject.image, (height, width), at=(left, tall - height))
        axes.set(xlim=(0, total), ylim=(1.08 * tall, -0.08 * tall))  # which imshow has changed
        axes.text(left + width / 2, 1.02 * tall, f"shorter side {size}", ha="center", va="top", fontsize=13)
        for row, colour in zip(range(len(rows)), NET_COLOURS, strict=False):
            if first[row] in (level, level - 1):
                x, y = left, tall - height
                box = boxes[row] * pyramid[level].scale_from(own.frame)[0] + torch.tensor([x, y, x, y])
                outline(axes, box[None], colour, width=2.5)
                tag(axes, box, f"{sides[row, level]:.0f} px", colour)
        left += width + gap
    if tall - sizes[0][0] > 1.5 * region_side:  # room above the smallest image
        axes.add_patch(Rectangle((2, 2), region_side, region_side, fill=False, ls="--", lw=1.5))
        axes.text(1.1 * region_side, region_side / 2, f"{region_side:.0f} px,\nseen best", va="center", fontsize=12)
    entries = [
        (f"{subject.classes[int(label)]} {one:.2f} → {two:.2f}", colour, "-")
        for label, one, two, colour in zip(labels, alone, both, NET_COLOURS, strict=False)
    ]
    add_legend(figure, entries, title="score at one scale → score at the two scales outlined, merged by maxout")
    return figure


def draw_ensemble(subject: Subject, further: Sequence[FasterRCNN]) -> Figure:
    """The best proposals of each net, and the averaged answer beside the answers it is the mean of."""
    nets = [subject.net, *further]
    given = observe(subject, nets, TestSettings(score_threshold=SURE))
    views, regions, mean, found = given.views, given.proposals, given.first, given.kept
    common = views[0].frame
    names = [f"net {number}" for number in range(1, len(nets) + 1)]
    figure, axes = sheet(subject, common, 2, "Ensemble: all nets score the proposals of all")
    most = MOST // len(nets)
    axes[0].set_title(f"the best {most} proposals of each net ({len(regions)} in all)")
    for view, colour in zip(views, NET_COLOURS, strict=False):
        outline(axes[0], view.propose(common)[0][0][:most], colour, width=1.2)
    axes[1].set_title("the answer: mean of the boxes and scores")
    rows, kinds = [], found.labels.tolist()
    for box, kind in zip(found.boxes, kinds, strict=True):
        rows.append(int(box_ops.iou(mean.boxes[:, kind % mean.boxes.shape[1]], box[None]).argmax()))
    answers = [ask(view, regions[rows], common) for view in views]
    for answer, colour in zip(answers, NET_COLOURS, strict=False):
        places = answer.boxes[torch.arange(len(rows)), found.labels % answer.boxes.shape[1]]
        outline(axes[1], places, colour, width=1.5)
    scores = torch.stack([answer.probabilities[torch.arange(len(rows)), found.labels] for answer in answers], dim=1)
    notes = ["\n(" + ", ".join(f"{score:.2f}" for score in each) + ")" for each in scores.tolist()]
    draw_detections(axes[1], found, subject.classes, colour=WHITE, notes=notes)
    entries = [*zip(names, NET_COLOURS, "-" * len(names), strict=False)]
    add_legend(figure, [*entries, ("mean; in brackets the score of each net", WHITE, "-")])
    return figure


def draw_suppression(subject: Subject) -> Figure:
    """Around one object: what each kind of suppression leaves, and what fusion makes of four looks."""
    low = TestSettings(score_threshold=0.05)
    runs = {name: observe(subject, [subject.net], low.updated(nms=name)) for name in ("hard", "linear", "gaussian")}
    size = round(FURTHER_SIZE * subject.net.preprocess.test_side)
    (view,), scored = runs["hard"].views, runs["hard"].first
    kept = {name: given.kept for name, given in runs.items()}
    sure = kept["hard"].scores > SURE
    centres, labels = kept["hard"].boxes[sure], kept["hard"].labels[sure]
    left = _near(kept["gaussian"], centres, labels) * kept["gaussian"].scores
    row = int(left.sum(1).argmax())  # where the kinds differ most
    centre, kind = centres[row : row + 1], labels[row : row + 1]

    rows, columns = torch.where(scored.probabilities > low.score_threshold)
    every = Detections(
        scored.boxes[rows, columns % scored.boxes.shape[1]], scored.probabilities[rows, columns], columns
    )
    views, merged = _fused(subject, low.updated(flip=True, sizes=(size,), merge="wbf"))
    panels = {
        "before": [every],
        "hard NMS": [kept["hard"]],
        "linear Soft-NMS": [kept["linear"]],
        "Gaussian Soft-NMS": [kept["gaussian"]],
        f"{len(views)} looks, hard NMS in each": views,
        MERGED: [merged],
    }
    title = f"Suppression and fusion: the boxes of one object ({subject.classes[int(kind)]})"
    figure, axes = sheet(subject, view.frame, 3, title, rows=2)
    around = torch.cat([centre, kept["gaussian"].boxes[_near(kept["gaussian"], centre, kind)[0]]])
    for panel, (name, answers) in zip(axes, panels.items(), strict=True):
        colours = (WHITE,) if name == MERGED else NET_COLOURS
        drawn = [_around(panel, answer, centre, kind, c) for answer, c in zip(answers, colours, strict=False)]
        scores = torch.cat(drawn).sort(descending=True).values
        few = ", ".join(f"{score:.2f}" for score in scores.tolist()) if len(scores) <= 6 else f"{len(scores)} boxes"
        panel.set_title(f"{name}\n{few}")
        zoom(panel, around, view.frame)
    shown = ("own size", f"size {size}", "own size, mirrored", f"size {size}, mirrored", "merged")
    entries = list(zip(shown, (*NET_COLOURS, WHITE), "-----", strict=True))
    add_legend(figure, entries, title="numbers are scores; the fainter the lower")
    return figure


@torch.no_grad()
def _fused(subject: Subject, settings: TestSettings) -> tuple[list[Detections], Detections]:
    """Each look's detections, and what fusion makes of them; boxes in the first look's frame."""
    predictor = Predictor([subject.net], settings)
    seen = looks([subject.net], settings, Views([subject.image]))
    scored = [look.in_frame(seen[0].frame, predictor.score(look)) for look in seen]
    return [predictor.suppress(of_look)[0] for of_look in scored], predictor.fuse(scored)[0]


def _around(panel: Axes, answer: Detections, centre: Tensor, kind: Tensor, colour: str) -> Tensor:
    """Draw what lies near one box, and return its scores."""
    near = _near(answer, centre, kind)[0]
    outline(panel, answer.boxes[near], colour, width=2, opacity=answer.scores[near].clamp(min=0.3))
    return answer.scores[near]


def _near(answer: Detections, centres: Tensor, labels: Tensor) -> Tensor:
    """(C, D) whether a detection is of the class of each of the (C, 4) boxes and touches it by an IoU of 0.1."""
    return (box_ops.iou(centres, answer.boxes) > 0.1) & (labels[:, None] == answer.labels)
