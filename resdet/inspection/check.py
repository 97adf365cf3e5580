"""The doctor: all that is wrong with a detection data set at once, before a training finds it one by one."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from resdet.datasets.annotations import Annotations
from resdet.datasets.coco import to_coco
from resdet.datasets.images import image_orientation, read_image
from resdet.datasets.lenience import lenient
from resdet.detection.anchors import Anchors
from resdet.detection.preprocess import resized
from resdet.engine.config import ExperimentConfig
from resdet.engine.progress import shown
from resdet.errors import InputError, listed
from resdet.evaluation.report import write_json

TINY = 8
"""Pixels of a side at the net's input below which an object is hardly seen."""
FIT = 0.5
"""Least overlap of a box with the anchor most like it."""
Severity = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """One kind of fault in one split."""

    severity: Severity
    """error: training refuses it; warning: it costs precision; note: good to know."""
    split: str
    what: str
    count: int
    examples: list[str]
    advice: str


class Picture(NamedTuple):
    """What the file of an image is."""

    fault: str
    """Why it does not decode, or nothing."""
    hw: tuple[int, int]
    turned: bool
    """By its EXIF orientation."""
    digest: str


def check(config: ExperimentConfig) -> tuple[list[Finding], dict[str, Annotations]]:
    """Look at the training and the validation data of a config.

    Args:
        config: of detection.

    Returns:
        The findings, the worst first, and the splits that could be read.
    """
    findings: list[Finding] = []
    splits: dict[str, Annotations] = {}
    pictures: dict[str, list[Picture]] = {}
    for split, read in (("train", config.train_data), ("val", config.test_data)):
        with _warnings() as told, lenient():  # pictures without a header are told by their own names below
            try:
                splits[split] = read()
            except InputError as error:
                advice = f"needed: {error.needed}"
                findings.append(Finding("error", split, f"not readable: {error.found}", 1, [error.where], advice))
        findings += [Finding("warning", split, line, 1, [], "mend the annotations, or leave it so") for line in told]
    for split, data in splits.items():
        with ThreadPoolExecutor() as pool:
            looks = shown(pool.map(_look, [data.path(row) for row in range(len(data))]), len(data), f"decoding {split}")
            pictures[split] = list(looks)
        findings += [*_images(split, data, pictures[split]), *_boxes(split, data), *_sizes(split, data, config)]
    findings += [*_classes(splits), *_leaks(splits, pictures)]
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted((f for f in findings if f.count), key=lambda f: rank[f.severity]), splits


def _look(path: str) -> Picture:
    try:
        content = Path(path).read_bytes()
        pixels = read_image(path)
    except (InputError, OSError) as error:
        return Picture(str(getattr(error, "found", error)), (0, 0), False, "")
    return Picture("", pixels.shape[:2], image_orientation(path) != 1, hashlib.sha256(content).hexdigest())


def _images(split: str, data: Annotations, pictures: Sequence[Picture]) -> Iterator[Finding]:
    names = list(data.files)
    bad = [row for row, picture in enumerate(pictures) if picture.fault]
    examples = [f"{names[row]}: {pictures[row].fault}" for row in bad]
    yield Finding("error", split, "images that do not decode", len(bad), examples, "replace them, or --fix OUT")
    other = [row for row, look in enumerate(pictures) if not look.fault and not _size_fits(data, row, look)]
    examples = [f"{names[row]}: {pictures[row].hw}, annotated {tuple(data.hw[row].tolist())}" for row in other]
    yield Finding(
        "error",
        split,
        "images of another size than annotated",
        len(other),
        examples,
        "annotate them anew, or --fix OUT",
    )
    turned = [names[row] for row, picture in enumerate(pictures) if picture.turned]
    advice = "boxes are taken as drawn on the upright image where its size says so: look at some with tools/browse.py"
    yield Finding("note", split, "images turned by EXIF", len(turned), turned, advice)
    seen: dict[str, list[str]] = {}
    for name, picture in zip(names, pictures, strict=True):
        if picture.digest:
            seen.setdefault(picture.digest, []).append(name)
    twice = [" = ".join(same) for same in seen.values() if len(same) > 1]
    yield Finding(
        "warning", split, "images that are there twice, by content", len(twice), twice, "keep one of each, or --fix OUT"
    )
    empty = int((np.diff(data.first) == 0).sum())
    share = f"images without objects ({empty / max(1, len(data)):.0%})"
    yield Finding("note", split, share, empty, [], "background is welcome; make sure it was not forgotten")


def _boxes(split: str, data: Annotations) -> Iterator[Finding]:
    written = data.written
    rows = Counter(
        zip(written.images.tolist(), written.labels.tolist(), map(tuple, written.boxes.tolist()), strict=True)
    )
    twice = [f"{data.files[image]}: {data.classes[label]} {box}" for (image, label, box), n in rows.items() if n > 1]
    yield Finding("warning", split, "boxes that are there twice", len(twice), twice, "keep one of each, or --fix OUT")
    names = Counter(data.files)
    same = [name for name, count in names.items() if count > 1]
    yield Finding("warning", split, "files under several ids", len(same), same, "put their boxes under one id")


def _sizes(split: str, data: Annotations, config: ExperimentConfig) -> Iterator[Finding]:
    model = config.model.settings
    sides = getattr(model, "shorter_side", None)
    if sides is None or not len(data.boxes) or (data.hw <= 0).any():
        return
    side = sides if isinstance(sides, int) else sides[-1]
    scale = np.array([resized(tuple(hw), side, model.longer_side, "detectron2")[0] / hw[0] for hw in data.hw.tolist()])
    images = np.repeat(np.arange(len(data)), np.diff(data.first))
    at_input = (data.boxes[:, 2:] - data.boxes[:, :2]) * scale[images][:, None]

    def examples(rows: np.ndarray) -> list[str]:
        return [f"{data.files[int(images[r])]}: {at_input[r][0]:.0f} x {at_input[r][1]:.0f}" for r in rows[:20]]

    tiny = np.flatnonzero(at_input.min(1) < TINY)
    advice = f"a larger model.shorter_side than {side}, or tiles"
    yield Finding("warning", split, f"boxes below {TINY} px at the input", len(tiny), examples(tiny), advice)
    sizes = model.anchor_sizes
    cells = Anchors([sizes], [16], (0.5, 1.0, 2.0)).cells[0]
    shapes = (cells[:, 2:] - cells[:, :2]).numpy()
    common = np.minimum(at_input[:, None], shapes[None]).prod(2)
    overlap = (common / (at_input.prod(1)[:, None] + shapes.prod(1)[None] - common)).max(1)
    lost = np.flatnonzero(overlap < FIT)
    lengths = np.sqrt(at_input.prod(1))
    wanted = np.unique(np.geomspace(*np.quantile(lengths, (0.02, 0.98)).clip(4), len(sizes)).round().astype(int))
    advice = (
        f"anchors of {tuple(sizes)} do not fit them; sides of all boxes: model.anchor_sizes={tuple(wanted.tolist())}"
    )
    yield Finding("warning", split, f"boxes that no anchor overlaps by {FIT}", len(lost), examples(lost), advice)


def _classes(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    for split, data in splits.items():
        counts = np.bincount(data.labels[~data.ignore], minlength=len(data.classes))
        none = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
        yield Finding("warning", split, "classes without a box", len(none), none, "boxes of them, or other classes")
        loose: dict[str, list[str]] = {}
        for name in data.classes:
            loose.setdefault("".join(name.lower().split()).replace("_", "").replace("-", ""), []).append(name)
        alike = [", ".join(map(repr, names)) for names in loose.values() if len(names) > 1]
        yield Finding(
            "warning", split, "names that differ by case or blanks", len(alike), alike, "one name for each class"
        )
    if len(splits) == 2:
        train, val = (set(data.classes) for data in splits.values())
        lacking = sorted(train ^ val)
        yield Finding("error", "train, val", "classes that one split lacks", len(lacking), lacking, "the same in both")


def _leaks(splits: Mapping[str, Annotations], pictures: Mapping[str, Sequence[Picture]]) -> Iterator[Finding]:
    if len(splits) < 2:
        return
    names = [
        {picture.digest: data.files[row] for row, picture in enumerate(pictures[split]) if picture.digest}
        for split, data in splits.items()
    ]
    both = [f"{names[0][digest]} = {names[1][digest]}" for digest in names[0] if digest in names[1]]
    advice = "take them out of one, or --fix OUT: figures on images that were trained on say nothing"
    yield Finding("warning", "train, val", "images in both splits, by content", len(both), both, advice)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What readers log as repaired."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, listener = logging.getLogger("resdet"), Listener(logging.WARNING)
    handlers, logger.handlers = logger.handlers, [listener]
    try:
        yield told
    finally:
        logger.handlers = handlers


def table(findings: Sequence[Finding]) -> str:
    """The findings for a terminal."""
    if not findings:
        return "nothing to find fault with"
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.upper():<8} {finding.split}: {finding.count} {finding.what}")
        lines += [f"         {listed(finding.examples, shown=3)}"] if finding.examples else []
        lines.append(f"         -> {finding.advice}")
    counts = Counter(finding.severity for finding in findings)
    return "\n".join([*lines, "", ", ".join(f"{counts[kind]} {kind}s" for kind in ("error", "warning", "note"))])


def repair(splits: Mapping[str, Annotations], out: Path, say: Callable[[str], None]) -> None:
    """Write each split as a COCO file: images that decode and have their annotated size, each once; boxes likewise.

    An image that is in both splits stays in ``val`` alone.

    Args:
        splits: what could be read.
        out: a folder, for ``train.json``, ``val.json`` and links to the images.
        say: takes a line for each repair.
    """
    elsewhere: set[str] = set()
    for split in reversed(list(splits)):
        data = splits[split]
        looks = [_look(data.path(row)) for row in range(len(data))]
        whole = [row for row, look in enumerate(looks) if not look.fault]
        right = [row for row in whole if _size_fits(data, row, looks[row])]
        first = {looks[row].digest: row for row in reversed(right)}
        once = [row for row in right if first[looks[row].digest] == row]
        rows = np.array([row for row in once if looks[row].digest not in elsewhere], dtype=np.int64)
        say(f"{split}: {len(data) - len(whole)} images that do not decode and {len(right) - len(once)} copies left out")
        say(f"{split}: {len(whole) - len(right)} images of another size than annotated left out")
        say(f"{split}: {len(once) - len(rows)} images that another split has too left out")
        elsewhere |= first.keys()
        content = to_coco(_plain(data).select(rows))
        boxes = {(row["image_id"], row["category_id"], *row["bbox"]): row for row in content["annotations"]}
        dropped = len(data.written.boxes) - len(data.boxes)
        say(f"{split}: {dropped} boxes without area or outside left out")
        say(f"{split}: {len(content['annotations']) - len(boxes)} boxes that were there twice left out")
        content["annotations"] = list(boxes.values())
        write_json(out / f"{split}.json", content)
        say(f"-> {out / f'{split}.json'}, images below {data.image_root}")
    _link_images(out, {split: Path(data.image_root) for split, data in splits.items()}, say)


def _link_images(out: Path, roots: Mapping[str, Path], say: Callable[[str], None]) -> None:
    """``images`` in the folder leads to where they are, so that ``--data`` takes it; real folders stay as they are."""
    apart = len(set(roots.values())) > 1
    links = {out / "images" / split if apart else out / "images": root for split, root in roots.items()}
    try:
        if (out / "images").is_symlink():  # of an earlier call; what is behind it is never written to
            (out / "images").unlink()
        for link, root in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            if not link.exists() and root.resolve() != out.resolve():
                link.symlink_to(root.resolve(), target_is_directory=True)
    except OSError as error:
        say(f"{out / 'images'}: cannot be linked ({error.strerror}); copy the images there")
    say(f"next: --data {out}")


def _size_fits(data: Annotations, row: int, picture: Picture) -> bool:
    """Whether an image has the size that its annotation tells, upright or not."""
    hw = tuple(data.hw[row].tolist())
    return 0 in hw or hw in (picture.hw, picture.hw[::-1])


def _plain(data: Annotations) -> Annotations:
    """The boxes as they were repaired, and not as they were written."""
    return replace(data, repaired=None)
