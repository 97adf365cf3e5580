"""``make demo``: pre-train, train, evaluate and draw on the embedded data set, in minutes on two CPU cores."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

WORK_DIR = Path("work_dirs")


def demo() -> None:
    """The demo, from nothing to pictures."""
    from resdet.api import Detector
    from resdet.datasets.detection import DetectionDataset
    from resdet.engine.config import load_config
    from resdet.engine.train import train
    from resdet.studies.shapes.sources import shapes
    from resdet.studies.shapes.world import write_shapes

    started = time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say("1/4  the data set: ten classes in a small world, some told only by their scene")
    say(f"     {write_shapes()}/  (COCO, VOC and folder-per-class form)")
    say("2/4  pre-training ResNet-18 at half width on crops (tools/train_cls.py configs/demo_cls.py)")
    train(load_config("demo_cls"), work_dir=WORK_DIR / "demo_cls", overwrite=True)
    published = json.loads((WORK_DIR / "demo_cls" / "metrics.json").read_text())["published"]
    say("3/4  training Faster R-CNN on it (tools/train_det.py configs/demo_det.py)")
    figures = train(load_config("demo_det"), work_dir=WORK_DIR / "demo_det", overwrite=True)
    say("4/4  drawing")
    picture, curves = WORK_DIR / "demo_det" / "detections.png", WORK_DIR / "demo_det" / "curves.png"
    detector, data = Detector(WORK_DIR / "demo_det" / "best.pth"), DetectionDataset(shapes(split="val"))
    title = f"Held-out images, mAP@.5 {figures['coco/AP50']:.2f}"
    draw_answers(detector, data, with_objects(data), picture, title=title, shown=lambda answer: answer.scores >= 0.5)
    draw_losses(WORK_DIR / "demo_det", curves)
    say(
        f"\nmAP@[.5,.95] {figures['coco/AP']:.3f}   mAP@.5 {figures['coco/AP50']:.3f}   on 200 held-out images"
        f"\ntop-1 accuracy of the published backbone that it started from {published['top1']:.3f}"
        f"\n{(time.perf_counter() - started) / 60:.1f} minutes"
        f"\npictures: {picture}, {curves}"
        "\n\nNext (after `. .venv/bin/activate`):"
        "\n  python tools/eval.py configs/demo_det.py work_dirs/demo_det/best.pth"
        "\n  python tools/infer.py work_dirs/demo_det/best.pth data/shapes/JPEGImages --out seen"
        "\n  your own images: README.md, 'Your own data'"
    )


def draw_answers(
    predictor, data, chosen: Iterable[int], path: Path, *, title: str, shown: Callable, images: int = 12
) -> None:
    """A sheet of the first of the chosen images of a set: the truth beside the rows of the answer that are shown."""
    from resdet.api.drawing import draw_comparison

    rows = []
    for index in itertools.islice(chosen, images):
        image, truth = data[index]
        answer = predictor(image)
        found = tuple(part[shown(answer)] for part in (answer.boxes, answer.labels, answer.scores))
        rows.append((image, (truth.boxes, truth.labels), found))
    draw_comparison(rows, path, classes=predictor.classes, title=title)


def with_objects(data) -> Iterator[int]:
    """The images of a set that hold objects."""
    return (index for index in range(len(data)) if len(data[index][1].labels))


def draw_losses(work_dir: Path, path: Path) -> None:
    """The losses of a run from its log."""
    from resdet.analysis.curves import read_rows
    from resdet.api.drawing import plot_curves

    log = max(work_dir.glob("*/vis_data/scalars.json"), key=lambda p: p.stat().st_mtime)
    rows = [row for row in read_rows(log) if "loss" in row]
    steps = [row["step"] for row in rows]
    series = {name: (steps, [row[name] for row in rows]) for name in rows[0] if name.startswith("loss")}
    plot_curves(series, path, title="Training losses", xlabel="step", ylabel="loss")


def say(text: str) -> None:
    """A line for the person at the terminal, at once."""
    print(text, flush=True)
