"""One annotation file of VOC's form, as labelling tools write it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from resdet.errors import InputError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LONGEST_NAME = 100
"""Characters of a class name. All names of a data set lie in one array, each as wide as the longest."""
FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
"""What tools write into ``<difficult>``; numbers are read as numbers."""


class VocImage(NamedTuple):
    """What one XML says."""

    filename: str
    hw: tuple[int, int]
    """(0, 0) where it does not say."""
    labels: list[str]
    """A class name for each object; boxes and flags likewise."""
    boxes: list[list[float]]
    """xmin, ymin, xmax, ymax as written."""
    difficult: list[bool]


def parse_xml(path: str) -> VocImage:
    """Read one annotation file of VOC's form; an empty file is an image without objects.

    Raises:
        InputError: the file cannot be read, the XML is broken or of an encoding that is not declared, an object has no
            name, one of over 100 characters, or no four numbers, or a flag or the size is none.
    """
    root = _root(path)
    labels, boxes, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), 1):
        where = f"{path}, object {number}"
        label, box = (item.findtext("name") or "").strip(), item.find("bndbox")
        try:
            values = [float(box.findtext(side)) for side in CORNERS]
        except (AttributeError, TypeError, ValueError) as error:
            values = [box.findtext(side) for side in CORNERS] if box is not None else "no <bndbox>"
            needed = f"<bndbox> with four numbers: {', '.join(CORNERS)}"
            raise InputError(where, found=values, needed=needed) from error
        if not label:
            raise InputError(where, found="no <name>", needed="the name of its class")
        if len(label) > LONGEST_NAME:
            found = f"a <name> of {len(label)} characters: {label[:20]}..."
            raise InputError(where, found=found, needed=f"{LONGEST_NAME} or fewer")
        labels.append(label)
        boxes.append(values)
        difficult.append(_flag(where, item.findtext("difficult") or ""))
    try:
        hw = (int(float(root.findtext("size/height") or 0)), int(float(root.findtext("size/width") or 0)))
    except (ValueError, OverflowError) as error:
        raise InputError(path, found="a <size> that is not a number", needed="height and width") from error
    if not all(0 <= side < 2**31 for side in hw):
        raise InputError(path, found=f"a <size> of height {hw[0]} and width {hw[1]}", needed="pixels, or 0: not known")
    return VocImage((root.findtext("filename") or "").strip(), hw, labels, boxes, difficult)


def _root(path: str) -> ElementTree.Element:
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(path, found="a folder, a pipe or a device", needed="a VOC annotation")
    try:
        content = Path(path).read_bytes()
        if not content.strip():
            return ElementTree.Element("annotation")
        # Python's parser knows five encodings by itself; the codecs know the others that tools declare.
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"'][^>]*\?>", content)
        if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"utf-16"):
            return ElementTree.fromstring(content[declared.end() :].decode(declared[1].decode()))
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        needed = "a complete VOC annotation, in UTF-8 or with its encoding declared in the first line"
        raise InputError(path, found=f"broken XML: {error}", needed=needed) from error
    except OSError as error:
        raise InputError(path, found=error.strerror or error, needed="a VOC annotation") from error


def _flag(where: str, text: str) -> bool:
    word = text.strip().lower()
    if word in FLAGS:
        return FLAGS[word]
    try:
        return {0.0: False, 1.0: True}[float(word)]
    except (ValueError, KeyError) as error:
        raise InputError(where, found=f"<difficult> {text.strip()!r}", needed="0 or 1") from error
