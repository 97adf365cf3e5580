"""What each step of the paper's appendix B does to one image, in a picture each: ``tools/show_steps.py``.

The pictures of ``docs/appendix_b.md`` are made here. They show what the stages of a real prediction gave; nothing of it
is computed in another way. Boxes are drawn in the frame in which the net saw them, the image stretched below.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from resdet import boxes as box_ops
from resdet.api import to_tensor
from resdet.api.drawing import class_colour
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.roi_head import read_predictions
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.tasks.detection import load_detector
from resdet.errors import InputError
from resdet.inference.multiscale import adjacent_scales, embed_maxout
from resdet.inference.predictor import Predictor
from resdet.inference.refinement import regressed
from resdet.inference.settings import PAPER_SCALES, TestSettings
from resdet.inference.stages import Stages
from resdet.inference.view import View, flatten, side
from resdet.structures import Detections, ImageBatch, ScoredBoxes

SURE = 0.5
"""Least score of what is drawn as a detection: the 0.05 of evaluation would bury the objects."""
REFINED = TestSettings(refine=1, vote=0.5, nms_iou=0.3, score_threshold=SURE)
"""The paper's box refinement and voting."""
WHITE, ORANGE, GREEN, BLUE, PINK = "#ffffff", "#ff9f1c", "#3ddc5b", "#35b5ff", "#ff5fa8"
NET_COLOURS = (ORANGE, BLUE, PINK, GREEN)
MOST = 40
"""Proposals drawn in one picture, the best ones; more hide the image."""
FURTHER_SIZE = 1.25
"""Of the last picture, as a multiple of the net's own size."""
MERGED = "these looks merged by WBF"
INCH = 100
"""Pixels of a picture per inch of its figure."""


class Subject(NamedTuple):
    """What is shown, and by which net."""

    net: FasterRCNN
    image: Tensor
    """(3, H, W) uint8."""
    classes: tuple[str, ...]


class Witness(Stages):
    """Stages that also show, by name and in order, what each of them gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, dict[Hashable, Any]] = {}

    def once(self, stage: str, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The stage's result, kept."""
        value = super().once(stage, key, compute)
        self.given.setdefault(stage, {})[key] = value
        return value


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
    return [_save(figure, Path(out) / f"{name}.jpg") for name, figure in figures.items()]


def _load(path: str | Path, classes: Sequence[str], *, context: bool | None = None) -> FasterRCNN:
    net = load_detector(path, classes).eval()
    if context is not None and net.roi_head.has_context != context:
        kinds = {True: "a net with global context", False: "a net without global context"}
        raise InputError(f"checkpoint {path}", found=kinds[not context], needed=kinds[context])
    return net


def observe(subject: Subject, nets: Sequence[FasterRCNN], settings: TestSettings) -> dict[str, list]:
    """What each stage of a prediction gave, by the names of :class:`resdet.inference.predictor.Predictor`'s stages."""
    stages = Witness()
    Predictor(nets, settings).predict([subject.image], stages)
    return {stage: list(results.values()) for stage, results in stages.given.items()}


def ask(view: View, boxes: Tensor, common: ImageBatch) -> ScoredBoxes:
    """What a net says of (R, 4) regions of the common frame."""
    images = torch.zeros(len(boxes), dtype=torch.long)
    vectors = view.embed(boxes, images, view.context(), common)
    return read_predictions(view.net.classify(vectors), boxes, common.limits()[images])


# --- the steps


def draw_baseline(subject: Subject, source: object) -> Figure:
    """Proposals, and the detections that the head and NMS make of them."""
    given = observe(subject, [subject.net], TestSettings(score_threshold=SURE))
    (view,), proposals, found = given["backbone"], given["union"][0][0], given["suppression"][0][0]
    if not len(found.boxes):
        needed = "an image in which the net finds something"
        raise InputError(f"image {source}", found=f"no object with a score above {SURE}", needed=needed)
    figure, axes = _sheet(subject, view.frame, 2, "Baseline: regions first, then what is in each")
    axes[0].set_title(f"RPN: the best {len(proposals[:MOST])} of {len(proposals)} proposals, no classes yet")
    _outline(axes[0], proposals[:MOST], WHITE, width=1)
    axes[1].set_title(f"head and NMS: {len(found.boxes)} detections with their scores")
    _detections(axes[1], found, subject.classes)
    return figure


def draw_refinement(subject: Subject) -> Figure:
    """For each of some objects the region whose box the second look moved most."""
    given = observe(subject, [subject.net], REFINED)
    (view,), proposals, first = given["backbone"], given["union"][0][0], given["regions"][0][0]
    union, found = given["refinement"][0][0], given["suppression"][0][0]
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
    figure, axes = _sheet(
        subject,
        view.frame,
        len(chosen),
        "Box refinement: look again from the box just found",
    )
    for panel, row in zip(axes, chosen, strict=True):
        trio = torch.stack([proposals[row], once[row], twice[row]])
        for box, colour, style in zip(trio, (WHITE, ORANGE, GREEN), ("--", "-", "-"), strict=True):
            _outline(panel, box[None], colour, width=2.5, style=style)
        _zoom(panel, trio, view.frame)
        name = subject.classes[int(label[row])]
        panel.set_title(f"{name}: score {score[row]:.2f} → {again[row]:.2f}")
        overlap = box_ops.iou(trio, trio)
        panel.set_xlabel(f"IoU {overlap[0, 1]:.2f}, then {overlap[1, 2]:.2f}", fontsize=12)
    entries = [("proposal", WHITE, "--"), ("first box", ORANGE, "-"), ("second box", GREEN, "-")]
    _legend(figure, entries, title="IoU: of each box with the one before it")
    return figure


def draw_voting(subject: Subject) -> Figure:
    """The object that voting moves most: who votes, and the box before and after."""
    given = observe(subject, [subject.net], REFINED)
    (view,), union = given["backbone"], given["refinement"][0][0]
    before, after = given["suppression"][0][0], given["voting"][0][0]
    row = int(box_ops.iou(before.boxes[:, None], after.boxes[:, None])[:, 0, 0].argmin())
    old, new, kind = before.boxes[row : row + 1], after.boxes[row : row + 1], int(before.labels[row])
    boxes, scores = union.boxes[:, kind % union.boxes.shape[1]], union.probabilities[:, kind]
    voters = box_ops.iou(boxes, old)[:, 0] >= REFINED.vote
    boxes, scores = boxes[voters], scores[voters]
    figure, axes = _sheet(subject, view.frame, 2, f"Box voting: the neighbours place the box ({subject.classes[kind]})")
    axes[0].set_title(f"{len(boxes)} boxes vote, the stronger the higher their score")
    _outline(axes[0], boxes, PINK, width=1.5, opacity=scores)
    axes[1].set_title(f"before and after: IoU {float(box_ops.iou(old, new)):.2f}")
    _outline(axes[1], old, ORANGE, width=2.5)
    _outline(axes[1], new, GREEN, width=2.5)
    for panel in axes:
        _zoom(panel, torch.cat([old, new]), view.frame)
    _legend(figure, [("voter", PINK, "-"), ("kept by NMS", ORANGE, "-"), ("after the vote", GREEN, "-")])
    return figure


def draw_context(subject: Subject, wider: FasterRCNN) -> Figure:
    """The answers of a net without and of one with context, and the box of which they think most differently."""
    settings = TestSettings(score_threshold=SURE)
    sides = [observe(subject, [net], settings) for net in (subject.net, wider)]
    views = [given["backbone"][0] for given in sides]
    common = views[0].frame
    found = [given["suppression"][0][0] for given in sides]
    found[1] = found[1]._replace(boxes=found[1].boxes / views[1].scale_from(common)[0])
    boxes = torch.cat([answer.boxes for answer in found])
    opinions = torch.stack([ask(view, boxes, common).probabilities for view in views])
    row = int((opinions[0] - opinions[1]).abs().sum(1).argmax())
    figure, axes = _sheet(subject, common, 2, "Global context: the whole image helps to name each region", extra=0.75)
    for panel, answer, name in zip(axes, found, ("without context", "with context"), strict=False):
        panel.set_title(name)
        _detections(panel, answer, subject.classes)
        _outline(panel, _grown(boxes[row : row + 1]), WHITE, width=2.5, style=":")
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


def draw_multiscale(subject: Subject, scales: Sequence[int], region_side: float) -> Figure:
    """A small, a middle and a large object on the pyramid, each outlined on the two scales where it is pooled."""
    given = observe(subject, [subject.net], TestSettings(score_threshold=SURE))
    (own,), found = given["backbone"], given["suppression"][0][0]
    order = side(found.boxes).argsort()
    rows = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])}, key=order.tolist().index)
    boxes, labels = found.boxes[rows], found.labels[rows]
    pyramid = [View(subject.net, [subject.image], size) for size in scales]
    sides = torch.stack([side(boxes * view.scale_from(own.frame)) for view in pyramid], dim=1)
    first = adjacent_scales(sides, region_side)
    images = torch.arange(len(rows))
    vectors = embed_maxout(pyramid, *flatten([boxes]), own.context(), own.frame, region_side=region_side)
    both = subject.net.classify(vectors).logits.softmax(1)[images, labels]
    alone = ask(own, boxes, own.frame).probabilities[images, labels]

    sizes = [view.frame.input_hw[0] for view in pyramid]
    gap = 0.03 * sum(width for _, width in sizes)
    total, tall = sum(width + gap for _, width in sizes) - gap, max(height for height, _ in sizes)
    figure = _figure(
        11, 11 * tall / total + 1.3, "Multi-scale testing: each region on the two scales that suit it best"
    )
    axes = figure.subplots()
    axes.axis("off")
    left = 0.0
    for level, ((height, width), size) in enumerate(zip(sizes, scales, strict=True)):
        _picture(axes, subject.image, (height, width), at=(left, tall - height))
        axes.set(xlim=(0, total), ylim=(1.08 * tall, -0.08 * tall))  # which imshow has changed
        axes.text(left + width / 2, 1.02 * tall, f"shorter side {size}", ha="center", va="top", fontsize=13)
        for row, colour in zip(range(len(rows)), NET_COLOURS, strict=False):
            if first[row] in (level, level - 1):
                x, y = left, tall - height
                box = boxes[row] * pyramid[level].scale_from(own.frame)[0] + torch.tensor([x, y, x, y])
                _outline(axes, box[None], colour, width=2.5)
                _tag(axes, box, f"{sides[row, level]:.0f} px", colour)
        left += width + gap
    if tall - sizes[0][0] > 1.5 * region_side:  # room above the smallest image
        axes.add_patch(Rectangle((2, 2), region_side, region_side, fill=False, ls="--", lw=1.5))
        axes.text(1.1 * region_side, region_side / 2, f"{region_side:.0f} px,\nseen best", va="center", fontsize=12)
    entries = [
        (f"{subject.classes[int(label)]} {one:.2f} → {two:.2f}", colour, "-")
        for label, one, two, colour in zip(labels, alone, both, NET_COLOURS, strict=False)
    ]
    _legend(figure, entries, title="score at one scale → score at the two scales outlined, merged by maxout")
    return figure


def draw_ensemble(subject: Subject, further: Sequence[FasterRCNN]) -> Figure:
    """The best proposals of each net, and the averaged answer beside the answers it is the mean of."""
    nets = [subject.net, *further]
    given = observe(subject, nets, TestSettings(score_threshold=SURE))
    views, regions, mean = given["backbone"], given["union"][0][0], given["regions"][0][0]
    found = given["suppression"][0][0]
    common = views[0].frame
    names = [f"net {number}" for number in range(1, len(nets) + 1)]
    figure, axes = _sheet(subject, common, 2, "Ensemble: all nets score the proposals of all")
    most = MOST // len(nets)
    axes[0].set_title(f"the best {most} proposals of each net ({len(regions)} in all)")
    for view, colour in zip(views, NET_COLOURS, strict=False):
        _outline(axes[0], view.in_common(view.propose(), common)[0][0][:most], colour, width=1.2)
    axes[1].set_title("the answer: mean of the boxes and scores")
    rows, kinds = [], found.labels.tolist()
    for box, kind in zip(found.boxes, kinds, strict=True):
        rows.append(int(box_ops.iou(mean.boxes[:, kind % mean.boxes.shape[1]], box[None]).argmax()))
    answers = [ask(view, regions[rows], common) for view in views]
    for answer, colour in zip(answers, NET_COLOURS, strict=False):
        places = answer.boxes[torch.arange(len(rows)), found.labels % answer.boxes.shape[1]]
        _outline(axes[1], places, colour, width=1.5)
    scores = torch.stack([answer.probabilities[torch.arange(len(rows)), found.labels] for answer in answers], dim=1)
    notes = ["\n(" + ", ".join(f"{score:.2f}" for score in each) + ")" for each in scores.tolist()]
    _detections(axes[1], found, subject.classes, colour=WHITE, notes=notes)
    _legend(
        figure,
        [
            *zip(names, NET_COLOURS, "-" * len(names), strict=False),
            ("mean; in brackets the score of each net", WHITE, "-"),
        ],
    )
    return figure


def draw_suppression(subject: Subject) -> Figure:
    """Around one object: what each kind of suppression leaves, and what fusion makes of four looks."""
    low = TestSettings(score_threshold=0.05)
    runs = {name: observe(subject, [subject.net], low.updated(nms=name)) for name in ("hard", "linear", "gaussian")}
    size = round(FURTHER_SIZE * subject.net.preprocess.test_side)
    looks = observe(subject, [subject.net], low.updated(flip=True, sizes=(size,), merge="wbf"))
    (view,), scored = runs["hard"]["backbone"], runs["hard"]["regions"][0][0]
    kept = {name: given["suppression"][0][0] for name, given in runs.items()}
    sure = kept["hard"].scores > SURE
    centres, labels = kept["hard"].boxes[sure], kept["hard"].labels[sure]
    left = _near(kept["gaussian"], centres, labels) * kept["gaussian"].scores
    row = int(left.sum(1).argmax())  # where the kinds differ most
    centre, kind = centres[row : row + 1], labels[row : row + 1]

    rows, columns = torch.where(scored.probabilities > low.score_threshold)
    every = Detections(
        scored.boxes[rows, columns % scored.boxes.shape[1]], scored.probabilities[rows, columns], columns
    )
    views = [of_look[0] for of_look in looks["suppression"]]
    panels = {
        "before": [every],
        "hard NMS": [kept["hard"]],
        "linear Soft-NMS": [kept["linear"]],
        "Gaussian Soft-NMS": [kept["gaussian"]],
        f"{len(views)} looks, hard NMS in each": views,
        MERGED: [looks["fusion"][0][0]],
    }
    title = f"Suppression and fusion: the boxes of one object ({subject.classes[int(kind)]})"
    figure, axes = _sheet(subject, view.frame, 3, title, rows=2)
    around = torch.cat([centre, kept["gaussian"].boxes[_near(kept["gaussian"], centre, kind)[0]]])
    for panel, (name, answers) in zip(axes, panels.items(), strict=True):
        colours = (WHITE,) if name == MERGED else NET_COLOURS
        drawn = [_around(panel, answer, centre, kind, c) for answer, c in zip(answers, colours, strict=False)]
        scores = torch.cat(drawn).sort(descending=True).values
        few = ", ".join(f"{score:.2f}" for score in scores.tolist()) if len(scores) <= 6 else f"{len(scores)} boxes"
        panel.set_title(f"{name}\n{few}")
        _zoom(panel, around, view.frame)
    shown = ("own size", f"size {size}", "own size, mirrored", f"size {size}, mirrored", "merged")
    _legend(
        figure,
        list(zip(shown, (*NET_COLOURS, WHITE), "-----", strict=True)),
        title="numbers are scores; the fainter the lower",
    )
    return figure


def _around(panel: Axes, answer: Detections, centre: Tensor, kind: Tensor, colour: str) -> Tensor:
    """Draw what lies near one box, and return its scores."""
    near = _near(answer, centre, kind)[0]
    _outline(panel, answer.boxes[near], colour, width=2, opacity=answer.scores[near].clamp(min=0.3))
    return answer.scores[near]


def _near(answer: Detections, centres: Tensor, labels: Tensor) -> Tensor:
    """(C, D) whether a detection is of the class of each of the (C, 4) boxes and touches it by an IoU of 0.1."""
    return (box_ops.iou(centres, answer.boxes) > 0.1) & (labels[:, None] == answer.labels)


# --- drawing


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=INCH, layout="constrained", facecolor="#fafaf8")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(title, fontsize=17, fontweight="bold")
    return figure


def _sheet(
    subject: Subject,
    frame: ImageBatch,
    columns: int,
    title: str,
    *,
    rows: int = 1,
    extra: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Panels with the image in each, and after them an empty one of ``extra`` times their width."""
    hw = frame.input_hw[0]
    shares = [1.0] * columns + ([extra] if extra else [])
    wide = 11 / sum(shares) if columns > 1 else 6
    figure = _figure(wide * sum(shares), rows * (wide * hw[0] / hw[1] + 0.25 * rows) + 0.85, title)
    axes = figure.subplots(rows, len(shares), squeeze=False, width_ratios=shares).flatten().tolist()
    for panel in axes[: rows * columns]:
        _picture(panel, subject.image, hw)
        panel.set(xlim=(0, hw[1]), ylim=(hw[0], 0), xticks=(), yticks=(), anchor="N")
    return figure, axes


def _picture(axes: Axes, image: Tensor, hw: tuple[int, int], at: tuple[float, float] = (0, 0)) -> None:
    (x, y), (height, width) = at, hw
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(x, x + width, y + height, y), interpolation="bicubic")


def _outline(
    axes: Axes, boxes: Tensor, colour: str, *, width: float, style: str = "-", opacity: Tensor | None = None
) -> None:
    """Frames with a thin dark edge, visible on any ground."""
    opacities = [1.0] * len(boxes) if opacity is None else opacity.clamp(0.08, 1).tolist()
    for (x1, y1, x2, y2), alpha in zip(boxes.tolist(), opacities, strict=True):
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=width, ls=style, alpha=alpha)
        frame.set_path_effects([withStroke(linewidth=width + 1.2, foreground="black", alpha=0.6 * alpha)])
        axes.add_patch(frame)


def _tag(axes: Axes, box: Tensor, text: str, colour: object) -> None:
    """A label on a patch: in a lower corner of a large box, above a small one, or below where there is no room."""
    x1, y1, x2, y2 = box.tolist()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    line = 0.07 * (bottom - top)  # so high, about
    inside = y2 - y1 > 5 * line
    below = not inside and y1 - top < line * len(text.splitlines())
    brightness = sum(share * part for share, part in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))
    aside = x1 > left + 0.8 * (right - left)
    axes.annotate(
        text,
        (x2 if aside else x1, y2 if inside or below else y1),
        (-3 if aside else 3, -5 if below else 5),
        textcoords="offset points",
        ha="right" if aside else "left",
        va="top" if below else "bottom",
        fontsize=11.5,
        fontweight="bold",
        color="black" if brightness > 0.45 else "white",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 2, "alpha": 0.9},
        clip_on=True,
    )


def _detections(
    axes: Axes,
    found: Detections,
    classes: Sequence[str],
    *,
    colour: str | None = None,
    notes: Sequence[str] | None = None,
) -> None:
    """Boxes in the colours of their classes, named; those that share a place share a label."""
    leaders: dict[int, list[str]] = {}
    overlap = box_ops.iou(found.boxes, found.boxes)
    notes = notes or [""] * len(found.boxes)
    for row, (kind, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True)):
        leader = next((other for other in leaders if overlap[row, other] > 0.7), row)
        leaders.setdefault(leader, []).append(f"{classes[kind]} {score:.2f}{notes[row]}")
        _outline(axes, found.boxes[row : row + 1], colour or _shade(kind), width=2.5)
    for row, texts in leaders.items():
        _tag(axes, found.boxes[row], "\n".join(texts), colour or _shade(int(found.labels[row])))


def _shade(label: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in class_colour(label))


def _grown(boxes: Tensor, by: float = 4.0) -> Tensor:
    return boxes + boxes.new_tensor([-by, -by, by, by])


def _zoom(axes: Axes, boxes: Tensor, frame: ImageBatch) -> None:
    """Show the neighbourhood of the boxes, as wide for its height as the image and inside it."""
    hull = torch.cat([boxes[:, :2].min(0).values, boxes[:, 2:].max(0).values])
    limit = frame.limits()[0, 2:]
    span = limit * ((hull[2:] - hull[:2]) / limit).max().mul(1.35).clamp(max=1)
    start = torch.minimum(((hull[:2] + hull[2:] - span) / 2).clamp(min=0), limit - span)
    (left, top), (right, bottom) = start.tolist(), (start + span).tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _legend(figure: Figure, entries: Sequence[tuple[str, str, str]], title: str | None = None) -> None:
    """One line for all panels, under a line of text: (text, colour, line style)."""
    lines = [Line2D([], [], color=c, ls=s, lw=3, label=text) for text, c, s in entries]
    for line in lines:
        line.set_path_effects([withStroke(linewidth=4.5, foreground="black", alpha=0.6)])
    if title:
        figure.set_figheight(figure.get_figheight() + 0.35)
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        fontsize=13,
        title=title,
        title_fontsize=13,
    )


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="jpeg", bbox_inches="tight", pil_kwargs={"quality": 80, "optimize": True})
    return path
