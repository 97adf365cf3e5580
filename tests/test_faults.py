"""Spoiled inputs by rule: every field of what is read, replaced by what has no place there.

Each ends in a right answer or in an InputError, whose message is short and can be shown.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import resdet
from resdet.datasets.annotations import Annotations
from resdet.datasets.by_folder import read_folder
from resdet.datasets.coco import read_coco
from resdet.datasets.voc import read_voc
from resdet.datasets.yolo import read_yolo
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.errors import InputError
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_rows import load_results

MANY = settings(
    max_examples=300,
    deadline=10_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(MANY, max_examples=140)


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def bomb(levels: int = 30) -> list:
    """Small in memory, endless when it is written out."""
    value: list = ["a"]
    for _ in range(levels):
        value = [value] * 4
    return value


JUNK = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1, 7, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400),
        *(0.5, -0.0, 1e30, 1e300, math.nan, math.inf, -math.inf, 1.0, 5.0),
        *(
            "",
            "x",
            "1",
            "1.0",
            " 7 ",
            "nan",
            "\ud800",
            "a\0b",
            "\x1b[31mred",
            "../../etc/passwd",
            "/etc/passwd",
            "x" * 5000,
        ),
        *([], [1], [1, 2, 3, 4], ["1", 2, 3, 4], [[1], 2, 3, 4], [0.1, 0.1, 0.2, 0.2], {}, {"a": 1}, deep(60)),
    ]
)
DELETE = object()


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Every place in nested lists and dicts."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


def spoil(content: object, place: tuple, junk: object) -> object:
    """A copy with something else at a place; :data:`DELETE` takes it away."""
    if not place:
        return None if junk is DELETE else junk
    content = copy.deepcopy(content)
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    if junk is DELETE:
        del inside[place[-1]]
    else:
        inside[place[-1]] = junk
    return content


def told(error: InputError) -> None:
    """A message is short, of three parts, and can be shown on any terminal."""
    text = str(error)
    assert len(text) < 6000 and all(ch.isprintable() or ch == "\n" for ch in text), text[:300]
    assert text.count("\n  found:  ") >= 1 and "\n  needed: " in text
    for words in (("Traceback", "(most"), ("set", "weights_only"), ("fail", "at", "inline_container")):
        assert " ".join(words) not in text  # joined here: hypothesis tries the constants of this file as file names


def sound(data: Annotations) -> None:
    """What a reader may return."""
    assert len(data) == len(data.files) == len(data.image_ids) and data.first[-1] == len(data.boxes)
    assert np.isfinite(data.boxes).all() and (data.boxes[:, 2:] > data.boxes[:, :2]).all() and (data.boxes >= 0).all()
    assert not len(data.labels) or 0 <= data.labels.min() <= data.labels.max() < len(data.classes)
    assert np.isfinite(data.written.boxes).all() and np.isfinite(data.areas).all()
    for row in range(len(data)):
        assert Path(data.path(row)).resolve().is_relative_to(Path(data.image_root).resolve())


COCO = {
    "info": {"year": 2020},
    "images": [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 4], "area": 20.0, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 5, "bbox": [0, 0, 20, 10], "area": 200, "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 5, "segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4]},
    ],
    "categories": [{"id": 3, "name": "cat", "supercategory": "pet"}, {"id": 5, "name": "dog", "supercategory": "pet"}],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    for number in (1, 2):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(root / f"{number}.png")
    return root


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@MANY
@given(place=st.sampled_from(places(COCO)), junk=st.one_of(st.just(DELETE), JUNK))
@example(place=("categories", 0, "name"), junk=[])
def test_fields_of_a_coco_file(images, place, junk):
    (images / "ann.json").write_text(json.dumps(spoil(COCO, place, junk)))
    try:
        sound(read_coco(images / "ann.json", images))
    except InputError as error:
        told(error)


@FEW
@given(cut=st.integers(0, 700), byte=st.integers(0, 255), insert=st.booleans())
def test_bytes_of_a_coco_file(images, cut, byte, insert):
    content = json.dumps(COCO).encode()
    content = content[:cut] + bytes([byte]) + content[cut + 1 :] if insert else content[:cut]
    (images / "bytes.json").write_bytes(content)
    try:
        sound(read_coco(images / "bytes.json", images))
    except InputError as error:
        told(error)


ROWS = [
    {"image_id": 1, "category_id": 3, "bbox": [1.0, 2.0, 5.0, 4.0], "score": 0.9},
    {"image_id": 2, "category_id": 5, "bbox": [0, 0, 20, 10], "score": 1},
]


@MANY
@given(place=st.sampled_from(places(ROWS)), junk=st.one_of(st.just(DELETE), JUNK))
def test_fields_of_a_results_file(images, place, junk):
    (images / "rows.json").write_text(json.dumps(spoil(ROWS, place, junk)))
    try:
        figures = evaluate_coco(COCO, load_results(images / "rows.json"))
        assert 0 <= figures.AP <= 1
    except InputError as error:
        told(error)


XML = (
    "<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size><object><name>cat</name>"
    "<difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
)
WORDS = st.sampled_from(
    [
        "",
        "x",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "True",
        "犬",
        "\x1b[31m",
        "../../etc/passwd",
        "&lt;",
        "x" * 3000,
    ]
)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voc_faults")
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / "a.png")
    (root / "Annotations" / "b.xml").write_text(XML.replace("a.png", "b.png"))
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / "b.png")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    return root


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@MANY
@given(number=st.integers(0, 30), word=WORDS, kind=st.sampled_from(["text", "tag", "cut", "byte"]))
def test_parts_of_a_voc_file(voc, number, word, kind):
    parts = XML.replace("<", "\n<").replace(">", ">\n").split("\n")
    at = number % len(parts)
    if kind == "text":
        parts[at] = parts[at] if parts[at].startswith("<") else word
    elif kind == "tag":
        parts[at] = ""
    content = "".join(parts).encode("utf-8", "surrogatepass")
    content = content[: number * 12] if kind == "cut" else content
    content = content[: number * 12] + b"\xff" + content[number * 12 + 1 :] if kind == "byte" else content
    (voc / "Annotations" / "a.xml").write_bytes(content)
    try:
        sound(read_voc([(voc, "train")]))
    except InputError as error:
        told(error)


@FEW
@given(
    content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
)
@example(content=b'"')
def test_lines_of_a_split_file(voc, content):
    (voc / "Annotations" / "a.xml").write_text(XML)
    (voc / "ImageSets" / "Main" / "mine.txt").write_bytes(content)
    try:
        sound(read_voc([(voc, "mine")]))
    except InputError as error:
        told(error)


@FEW
@given(
    content=st.one_of(st.binary(max_size=60), st.lists(WORDS, max_size=8).map(lambda words: " ".join(words).encode()))
)
@example(content=b"nan 0 0 0 0")
@example(content=b"inf 0 0 0 0")
def test_lines_of_a_yolo_file(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("yolo_faults")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name in "ab":
        Image.new("RGB", (20, 10), (ord(name), 0, 0)).save(root / "images" / f"{name}.png")
    (root / "labels" / "a.txt").write_bytes(content)
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    try:
        sound(read_yolo(root / "data.yaml"))
        sound(read_folder(root))
    except InputError as error:
        told(error)


YAML = {"path": ".", "train": "images", "val": "images", "nc": 2, "names": ["cat", "dog"]}


@FEW
@given(place=st.sampled_from(places(YAML)), junk=st.one_of(st.just(DELETE), JUNK))
def test_fields_of_a_yolo_data_file(images, place, junk):
    (images / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(images / "images" / "a.png")
    (images / "data.yaml").write_text(json.dumps(spoil(YAML, place, junk)))  # which is YAML, too
    try:
        sound(read_yolo(images / "data.yaml"))
    except InputError as error:
        told(error)


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(trained) -> dict:
    content = torch.load(trained / "last.pth", weights_only=True)
    return {"meta": content["meta"], "state_dict": content["state_dict"], "optimizer": content["optimizer"]}


META = ["task", "classes", "model", "step", "figures", "test", "category_ids", "settings", "best", "config"]
MODEL = ["type", "backbone", "num_classes", "anchor_sizes", "shorter_side", "head_width", "test_proposals", "nms_iou"]
VALUES = st.one_of(
    JUNK, st.just(bomb()), st.sampled_from([(), (1, 2), ["a", "b", "c"], ["a", "a", "a"], torch.zeros(3)])
)


@pytest.mark.filterwarnings("ignore")
@settings(MANY, max_examples=150)
@given(field=st.sampled_from([(name,) for name in META] + [("model", name) for name in MODEL]), junk=VALUES)
def test_what_a_checkpoint_tells(tmp_path_factory, checkpoint, field, junk):
    path = tmp_path_factory.getbasetemp() / "spoiled.pth"
    content = {**checkpoint, "meta": spoil(checkpoint["meta"], field, junk)}
    torch.save(content, path)
    try:
        detector = resdet.Detector(path, device="cpu")
        assert len(detector.classes) == 3
        found = detector(np.zeros((40, 60, 3), np.uint8))
        assert torch.isfinite(found.boxes).all()
    except InputError as error:
        told(error)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(
    content=st.one_of(
        VALUES,
        st.builds(lambda a, b: {"meta": a, "state_dict": b}, VALUES, VALUES),
        st.builds(lambda a: {"meta": {"classes": ["a"]}, "state_dict": {"net.x": a}}, VALUES),
        st.builds(lambda a: {"meta": {"classes": a, "task": "detection"}, "state_dict": {}}, VALUES),
    )
)
def test_other_files_of_torch(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "other.pth"
    torch.save(content, path)
    for read in (read_checkpoint, resdet.Detector, resdet.Classifier):
        try:
            read(path)
        except InputError as error:
            told(error)


@FEW
@given(cut=st.floats(0, 1), byte=st.integers(0, 255), keep=st.booleans())
@example(cut=0.9996159502434152, byte=1, keep=True)  # the method of compression in the zip's directory
def test_bytes_of_a_checkpoint(tmp_path_factory, trained, cut, byte, keep):
    content = (trained / "last.pth").read_bytes()
    at = int(cut * (len(content) - 1))
    spoiled = content[:at] + bytes([content[at] ^ (byte or 1)]) + content[at + 1 :] if keep else content[:at]
    path = tmp_path_factory.getbasetemp() / "bytes.pth"
    path.write_bytes(spoiled)
    try:
        read_checkpoint(path)
    except InputError as error:
        told(error)
    else:
        assert keep  # a byte that nothing depends on: of a date, or of padding


OPTIONS = [
    *("model.shorter_side", "model.score_threshold", "model.nms_iou", "model.max_per_image", "model.test_proposals"),
    *("loader.batch_size", "optimizer.lr", "optimizer.type", "schedule.length", "schedule.milestones", "run.seed"),
    *("test.refine", "test.vote", "test.scales", "run.amp", "task", "metric", "augmentation", "model.type"),
]


@FEW
@given(
    name=st.sampled_from(OPTIONS),
    text=st.sampled_from(
        [
            "",
            "x",
            "-1",
            "0",
            "2",
            "nan",
            "inf",
            "1e400",
            "9" * 400,
            "None",
            "(0,0)",
            "()",
            "[",
            "'",
            "int",
            "{}",
            "4294967296",
            "\x1b[1m",
        ]
    ),
)
def test_options_of_a_config(det_config, name, text):
    try:
        load_config(det_config, [f"{name}={text}"])
    except InputError as error:
        told(error)
