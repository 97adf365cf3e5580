"""Detections in files, picture by picture, so that a run that is cut short has written what it found."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image

from resdet.api.drawing import draw_detections
from resdet.api.sources import Frame
from resdet.evaluation.coco_results import coco_results
from resdet.evaluation.report import write_json
from resdet.structures import Detections


class Writer:
    """Writes what was found in each picture.

    Args:
        out: a folder that exists.
        classes: K names.
        category_ids: of each class.
    """

    least: float | None = None
    """Least score of what it is given; None: that of the call."""

    def __init__(self, out: Path, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        self.out, self.classes, self.category_ids = out, classes, np.array(category_ids)

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """One picture.

        Args:
            number: of it, from 1.
            name: of its files, unique, without ending.
            frame: the picture.
            found: in it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """The end."""


class Pictures(Writer):
    """Boxes drawn: a PNG of a picture, an MP4 of a video."""

    def __init__(self, out: Path, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        super().__init__(out, classes, category_ids)
        self._videos: dict[str, cv2.VideoWriter] = {}

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Draw."""
        picture = draw_detections(frame.pixels, found.boxes, found.labels, found.scores, classes=self.classes)
        if frame.number is None:
            picture.save(self.out / f"{name}.png")
            return
        if frame.source not in self._videos:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            stem = re.sub(r"\W+", "_", Path(frame.source).stem) or "stream"
            self._videos[frame.source] = cv2.VideoWriter(str(self.out / f"{stem}.mp4"), code, frame.rate, picture.size)
        self._videos[frame.source].write(cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the videos."""
        for video in self._videos.values():
            video.release()


class Coco(Writer):
    """``detections.jsonl``, a line for each picture as it comes, and at the end ``detections.json`` in COCO's form."""

    def __init__(self, out: Path, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        super().__init__(out, classes, category_ids)
        self._lines = (out / "detections.jsonl").open("w", encoding="utf-8")

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Write a line."""
        file = frame.source if frame.number is None else f"{frame.source}#{frame.number}"
        height, width = frame.pixels.shape[1:]
        image = {"id": number, "file_name": file, "height": height, "width": width}
        line = {"image": image, "annotations": coco_results(found, number, self.category_ids)}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Put the lines together."""
        self._lines.close()
        with open(self._lines.name, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        categories = zip(self.category_ids.tolist(), self.classes, strict=True)
        content = {
            "images": [line["image"] for line in lines],
            "categories": [{"id": key, "name": name} for key, name in categories],
            "annotations": [row for line in lines for row in line["annotations"]],
        }
        write_json(self.out / "detections.json", content)


class Yolo(Writer):
    """``labels/NAME.txt``: class, centre, width and height as fractions, score; ``classes.txt`` beside them."""

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Write a file."""
        folder = self.out / "labels"
        if number == 1:
            folder.mkdir(exist_ok=True)
            (self.out / "classes.txt").write_text("\n".join(self.classes) + "\n", encoding="utf-8")
        height, width = frame.pixels.shape[1:]
        x1, y1, x2, y2 = (found.boxes / found.boxes.new_tensor([width, height] * 2)).unbind(1)
        table = zip(found.labels.tolist(), (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, found.scores, strict=True)
        rows = [f"{label} " + " ".join(f"{float(value):.6f}" for value in values) for label, *values in table]
        (folder / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))


class Voc(Writer):
    """``annotations/NAME.xml`` in the form of Pascal VOC, with scores; the first pixel is 1."""

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Write a file."""
        folder = self.out / "annotations"
        folder.mkdir(exist_ok=True)
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(frame.source).name
        size = ElementTree.SubElement(root, "size")
        for key, side in zip(("height", "width", "depth"), (*frame.pixels.shape[1:], 3), strict=True):
            ElementTree.SubElement(size, key).text = str(side)
        for box, score, label in zip(*(part.tolist() for part in found), strict=True):
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = self.classes[label]
            ElementTree.SubElement(thing, "score").text = f"{score:.6f}"
            place = ElementTree.SubElement(thing, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, *box[2:]), strict=True):
                ElementTree.SubElement(place, key).text = f"{value:.2f}"
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(folder / f"{name}.xml", encoding="utf-8")


class Csv(Writer):
    """``detections.csv``, a row for each box."""

    def __init__(self, out: Path, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        super().__init__(out, classes, category_ids)
        self._file = (out / "detections.csv").open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["file", "frame", "class", "score", "x1", "y1", "x2", "y2"])

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Write the rows."""
        at = "" if frame.number is None else frame.number
        for box, score, label in zip(*(part.tolist() for part in found), strict=True):
            numbers = [f"{value:.2f}" for value in box]
            self._rows.writerow([frame.source, at, self.classes[label], f"{score:.6f}", *numbers])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Crops(Writer):
    """``crops/CLASS/NAME_k.png``, what is in each box."""

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Write the pieces."""
        height, width = frame.pixels.shape[1:]
        for row, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels.tolist(), strict=True), 1):
            left, top = (int(min(value, side - 1)) for value, side in zip(box[:2], (width, height), strict=True))
            right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
            folder = self.out / "crops" / folder_name(self.classes[label])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = frame.pixels[:, top:bottom, left:right].permute(1, 2, 0).contiguous()
            Image.fromarray(pixels.numpy()).save(folder / f"{name}_{row}.png")


def folder_name(text: str) -> str:
    """A class name as the name of a folder, with escapes for what the file system cannot hold."""
    encoding = sys.getfilesystemencoding()
    held = text.encode(encoding, "backslashreplace").decode(encoding)
    return re.sub(r"[^\w. -]", "_", held).strip(". ") or "_"


WRITERS = MappingProxyType({"pictures": Pictures, "coco": Coco, "yolo": Yolo, "voc": Voc, "csv": Csv, "crops": Crops})
"""By the names that ``--save`` takes."""
