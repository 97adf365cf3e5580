"""What a prediction did with one image, and the panels in which it is shown: for the pictures of ``steps.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from resdet import boxes as box_ops
from resdet.api.drawing import class_colour
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.postprocess import suppress
from resdet.detection.roi_head import read_predictions
from resdet.inference.look import looks
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.inference.view import View, Views
from resdet.structures import Detections, ImageBatch, ScoredBoxes

SURE = 0.5
"""Least score of what is drawn as a detection: the 0.05 of evaluation would bury the objects."""
WHITE, ORANGE, GREEN, BLUE, PINK = "#ffffff", "#ff9f1c", "#3ddc5b", "#35b5ff", "#ff5fa8"
NET_COLOURS = (ORANGE, BLUE, PINK, GREEN)
MOST = 40
"""Proposals drawn in one picture, the best ones; more hide the image."""
INCH = 100
"""Pixels of a picture per inch of its figure."""


class Subject(NamedTuple):
    """What is shown, and by which net."""

    net: FasterRCNN
    image: Tensor
    """(3, H, W) uint8."""
    classes: tuple[str, ...]


class Observed(NamedTuple):
    """What the steps of a prediction gave."""

    views: list[View]
    """Of each net."""
    proposals: Tensor
    """(P, 4) of all nets."""
    scored: ScoredBoxes
    """What the nets say of those and, after them, of the boxes of each round of refinement."""
    kept: Detections
    """After NMS."""
    voted: Detections
    """After voting; as kept without it."""

    @property
    def first(self) -> ScoredBoxes:
        """What the nets say of the proposals."""
        return ScoredBoxes(*(part[: len(self.proposals)] for part in self.scored))


@torch.no_grad()
def observe(subject: Subject, nets: Sequence[FasterRCNN], settings: TestSettings) -> Observed:
    """The steps of a prediction, one by one, with one look; boxes in its frame."""
    predictor = Predictor(nets, settings)
    (look,) = looks(nets, settings, Views([subject.image]))
    scored = predictor.score(look)
    (kept,) = suppress(scored, **predictor.suppression._asdict())
    (voted,) = predictor.suppress(scored)
    return Observed(look.own, look.propose()[0], scored[0], kept, voted)


def ask(view: View, boxes: Tensor, common: ImageBatch) -> ScoredBoxes:
    """What a net says of (R, 4) regions of the common frame."""
    images = torch.zeros(len(boxes), dtype=torch.long)
    vectors = view.embed(boxes, images, view.context, common)
    return read_predictions(view.net.classify(vectors), boxes, common.limits()[images])


# --- drawing


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, with a title."""
    figure = Figure(figsize=(width, height), dpi=INCH, layout="constrained", facecolor="#fafaf8")
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(title, fontsize=17, fontweight="bold")
    return figure


def sheet(
    subject: Subject, frame: ImageBatch, columns: int, title: str, *, rows: int = 1, extra: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Panels with the image in each, and after them an empty one of ``extra`` times their width."""
    hw = frame.input_hw[0]
    shares = [1.0] * columns + ([extra] if extra else [])
    wide = 11 / sum(shares) if columns > 1 else 6
    figure = new_figure(wide * sum(shares), rows * (wide * hw[0] / hw[1] + 0.25 * rows) + 0.85, title)
    axes = figure.subplots(rows, len(shares), squeeze=False, width_ratios=shares).flatten().tolist()
    for panel in axes[: rows * columns]:
        show_image(panel, subject.image, hw)
        panel.set(xlim=(0, hw[1]), ylim=(hw[0], 0), xticks=(), yticks=(), anchor="N")
    return figure, axes


def show_image(axes: Axes, image: Tensor, hw: tuple[int, int], at: tuple[float, float] = (0, 0)) -> None:
    """The image stretched to (height, width), its upper left corner at (x, y)."""
    (x, y), (height, width) = at, hw
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(x, x + width, y + height, y), interpolation="bicubic")


def outline(
    axes: Axes, boxes: Tensor, colour: str, *, width: float, style: str = "-", opacity: Tensor | None = None
) -> None:
    """Frames with a thin dark edge, visible on any ground."""
    opacities = [1.0] * len(boxes) if opacity is None else opacity.clamp(0.08, 1).tolist()
    for (x1, y1, x2, y2), alpha in zip(boxes.tolist(), opacities, strict=True):
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=width, ls=style, alpha=alpha)
        frame.set_path_effects([withStroke(linewidth=width + 1.2, foreground="black", alpha=0.6 * alpha)])
        axes.add_patch(frame)


def tag(axes: Axes, box: Tensor, text: str, colour: object) -> None:
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


def draw_detections(
    axes: Axes, found: Detections, classes: Sequence[str], *, colour: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Boxes in the colours of their classes, named; those that share a place share a label."""
    leaders: dict[int, list[str]] = {}
    overlap = box_ops.iou(found.boxes, found.boxes)
    notes = notes or [""] * len(found.boxes)
    for row, (kind, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True)):
        leader = next((other for other in leaders if overlap[row, other] > 0.7), row)
        leaders.setdefault(leader, []).append(f"{classes[kind]} {score:.2f}{notes[row]}")
        outline(axes, found.boxes[row : row + 1], colour or _shade(kind), width=2.5)
    for row, texts in leaders.items():
        tag(axes, found.boxes[row], "\n".join(texts), colour or _shade(int(found.labels[row])))


def _shade(label: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in class_colour(label))


def zoom(axes: Axes, boxes: Tensor, frame: ImageBatch) -> None:
    """Show the neighbourhood of the boxes, as wide for its height as the image and inside it."""
    hull = torch.cat([boxes[:, :2].min(0).values, boxes[:, 2:].max(0).values])
    limit = frame.limits()[0, 2:]
    span = limit * ((hull[2:] - hull[:2]) / limit).max().mul(1.35).clamp(max=1)
    start = torch.minimum(((hull[:2] + hull[2:] - span) / 2).clamp(min=0), limit - span)
    (left, top), (right, bottom) = start.tolist(), (start + span).tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top))


def add_legend(figure: Figure, entries: Sequence[tuple[str, str, str]], title: str | None = None) -> None:
    """One line for all panels, under a line of text: (text, colour, line style)."""
    lines = [Line2D([], [], color=c, ls=s, lw=3, label=text) for text, c, s in entries]
    for line in lines:
        line.set_path_effects([withStroke(linewidth=4.5, foreground="black", alpha=0.6)])
    if title:
        figure.set_figheight(figure.get_figheight() + 0.35)
    place = {"loc": "outside lower center", "ncols": len(lines), "frameon": False}
    figure.legend(handles=lines, title=title, fontsize=13, title_fontsize=13, **place)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="jpeg", bbox_inches="tight", pil_kwargs={"quality": 80, "optimize": True})
    return path
