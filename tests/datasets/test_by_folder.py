"""A data set by its folder: one set in many forms gives the same arrays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdet.datasets.by_folder import read_folder, recognise
from resdet.datasets.yolo import label_file, read_labels, read_yolo
from resdet.errors import InputError

CLASSES = ("cat", "dog")
SETS = {
    "train": {"a.jpg": [(0, 2, 4, 12, 10)], "b.jpg": [(1, 0, 0, 20, 16), (0, 5, 5, 8, 9)], "c.jpg": []},
    "val": {"d.jpg": [(1, 8, 2, 16, 6)], "e.jpg": [(0, 4, 4, 8, 8)]},
}
"""Class and x1, y1, x2, y2 of 20 x 16 images."""


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, 3).tolist())
    Image.new("RGB", (20, 16), colour).save(path)


def coco(path: Path, images: dict, prefix: str = "") -> None:
    rows, boxes = [], []
    for number, (name, things) in enumerate(images.items()):
        rows.append({"id": number, "file_name": prefix + name, "width": 20, "height": 16})
        for label, x1, y1, x2, y2 in things:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": rows, "annotations": boxes, "categories": categories}))


def voc(path: Path, things: list) -> None:
    objects = ""
    for label, x1, y1, x2, y2 in things:
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        objects += f"<object><name>{CLASSES[label]}</name><bndbox>{corners}</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><size><width>20</width><height>16</height></size>{objects}</annotation>")


def yolo(path: Path, things: list) -> None:
    rows = []
    for label, x1, y1, x2, y2 in things:
        rows.append(f"{label} {(x1 + x2) / 40} {(y1 + y2) / 32} {(x2 - x1) / 20} {(y2 - y1) / 16}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows))


def coco_pair(root: Path) -> None:
    for split, images in SETS.items():
        coco(root / f"{split}.json", images)
        for name in images:
            picture(root / "images" / name)


def coco_2017(root: Path) -> None:
    for split, images in SETS.items():
        coco(root / "annotations" / f"instances_{split}2017.json", images)
        for name in images:
            picture(root / f"{split}2017" / name)


def roboflow(root: Path) -> None:
    for split, images in SETS.items():
        folder = root / {"train": "train", "val": "valid"}[split]
        coco(folder / "_annotations.coco.json", images)
        for name in images:
            picture(folder / name)


def voc_sets(root: Path) -> None:
    for split, images in SETS.items():
        for name, things in images.items():
            picture(root / "JPEGImages" / name)
            voc(root / "Annotations" / f"{name[0]}.xml", things)
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(name[0] for name in images))


def voc_folders(root: Path) -> None:
    for split, images in SETS.items():
        for name, things in images.items():
            picture(root / split / name)
            voc(root / split / f"{name[0]}.xml", things)


def yolo_images_first(
    root: Path, yaml: str = "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
) -> None:
    for split, images in SETS.items():
        for name, things in images.items():
            picture(root / "images" / split / name)
            if things:
                yolo(root / "labels" / split / f"{name[0]}.txt", things)
    if yaml:
        (root / "data.yaml").write_text(yaml)
    else:
        (root / "classes.txt").write_text("cat\ndog\n")


def yolo_splits_first(root: Path) -> None:
    for split, images in SETS.items():
        folder = root / {"train": "train", "val": "valid"}[split]
        for name, things in images.items():
            picture(folder / "images" / name)
            yolo(folder / "labels" / f"{name[0]}.txt", things)
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def yolo_without_yaml(root: Path) -> None:
    yolo_images_first(root, yaml="")


FORMS = [
    *(coco_pair, coco_2017, roboflow, voc_sets, voc_folders),
    *(yolo_images_first, yolo_splits_first, yolo_without_yaml),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_one_set_in_many_forms(tmp_path, form, caplog):
    caplog.set_level("INFO")
    form(tmp_path)
    for split, images in SETS.items():
        data = read_folder(tmp_path, split)
        assert data.classes == CLASSES
        assert [Path(name).name for name in data.files] == sorted(images)
        things = [box for name in sorted(images) for box in images[name]]
        np.testing.assert_allclose(data.boxes, [box[1:] for box in things], atol=1e-5)
        assert data.labels.tolist() == [box[0] for box in things]
        assert np.diff(data.first).tolist() == [len(images[name]) for name in sorted(images)]
        assert data.hw.tolist() == [[16, 20]] * len(images)
        assert all(Path(data.path(row)).is_file() for row in range(len(data)))
    told = caplog.messages[-1]
    assert told.count("\n") == 2 and "2 classes: cat, dog" in told and "val: 2 images, 2 boxes" in told


def test_classes_in_another_order(tmp_path):
    for form in (coco_pair, voc_sets, yolo_images_first):
        root = tmp_path / form.__name__
        form(root)
        data = read_folder(root, "train", classes=("dog", "cat"))
        assert data.classes == ("dog", "cat") and data.labels.tolist() == [1, 0, 1]


def exports(root: Path, kind: str) -> None:
    """Without a split, as tools export: images beside annotations."""
    images = {name: things for part in SETS.values() for name, things in part.items()}
    images |= {f"{number:02}.jpg": [(number % 2, 1, 1, 5, 5)] for number in range(20)}
    for name in images:
        picture(root / "images" / name)
    if kind == "cvat":
        coco(root / "annotations" / "instances_default.json", images)
    elif kind == "label-studio":
        coco(root / "result.json", images, prefix="images\\")
    elif kind == "elsewhere":
        coco(root / "result.json", images, prefix="/data/upload/4/")
    elif kind == "annots":
        for name, things in images.items():
            voc(root / "annots" / f"{name[:-4]}.xml", things)
    else:
        for name, things in images.items():
            yolo(root / "labels" / f"{name[:-4]}.txt", things)
        (root / "classes.txt").write_text("cat\ndog\n")


@pytest.mark.parametrize("kind", ["cvat", "label-studio", "elsewhere", "annots", "yolo"])
def test_a_set_without_a_split_is_split_by_content(tmp_path, kind):
    exports(tmp_path, kind)
    train, val = (read_folder(tmp_path, split) for split in ("train", "val"))
    names = [{Path(name).name for name in data.files} for data in (train, val)]
    assert len(names[0] | names[1]) == 25 and not names[0] & names[1]
    assert 1 <= len(val) <= 10 and train.classes == val.classes == CLASSES
    # More images, and others' names changed: whoever was for validation stays there.
    if kind == "cvat":
        before = {data.path(row): Path(data.path(row)).read_bytes() for data in (val,) for row in range(len(data))}
        more = {f"new{number}.jpg": [(0, 1, 1, 5, 5)] for number in range(20)}
        content = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
        for number, name in enumerate(more):
            picture(tmp_path / "images" / name, seed=1)
            content["images"].append({"id": 1000 + number, "file_name": name, "width": 20, "height": 16})
        (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(content))
        again = read_folder(tmp_path, "val")
        assert set(before) <= {again.path(row) for row in range(len(again))}


def test_two_images_are_one_for_each(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.jpg")
        voc(tmp_path / f"{name}.xml", [(0, 1, 1, 5, 5)])
    assert [len(read_folder(tmp_path, split)) for split in ("train", "val")] == [1, 1]


def test_test_takes_the_place_of_val(tmp_path):
    voc_sets(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "val.txt").rename(tmp_path / "ImageSets" / "Main" / "test.txt")
    assert [Path(name).name for name in read_folder(tmp_path, "val").files] == ["d.jpg", "e.jpg"]
    (tmp_path / "ImageSets" / "Main" / "train.txt").rename(tmp_path / "ImageSets" / "Main" / "trainval.txt")
    assert len(read_folder(tmp_path, "train")) == 3


def test_what_is_not_recognised(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match=r"no images\n.*COCO .* VOC .* YOLO"):
        read_folder(tmp_path)
    picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="1 images and no annotations"):
        read_folder(tmp_path)
    yolo(tmp_path / "a.txt", [(0, 1, 1, 5, 5)])
    with pytest.raises(InputError, match=r"0 files of class names\n.*classes\.txt"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"a file\n.*a folder, a \.json"):
        read_folder(tmp_path / "a.jpg")


def test_several_sets_are_listed(tmp_path):
    coco_pair(tmp_path / "one")
    voc_sets(tmp_path / "two")
    with pytest.raises(InputError, match=r"several data sets: .*train\.json.*\.xml\n.*sub-folder"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path / "two")) == 3
    shutil.copy(tmp_path / "one" / "train.json", tmp_path / "one" / "train_old.json")
    with pytest.raises(InputError, match=r"train\.json, .*train_old\.json"):
        read_folder(tmp_path / "one")
    assert (
        len(read_folder(tmp_path / "one" / "train.json", "train"))
        + len(read_folder(tmp_path / "one" / "train.json", "val"))
        == 3
    )
    assert recognise(tmp_path / "two").form.startswith("VOC")


# --- YOLO's own


def test_labels_by_hand(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1 0.5 0.5 0.5 0.25\n\n0 0.1 0.2 0.4 0.2 0.3 0.6\n0 0.5 0.5 1 1 0.9\n")
    np.testing.assert_allclose(
        read_labels(file, 2),
        [
            [1, 0.25, 0.375, 0.75, 0.625],
            [0, 0.1, 0.2, 0.4, 0.6],
            [0, 0, 0, 1, 1],
        ],  # box, triangle, scored box
    )
    assert read_labels(tmp_path / "none.txt", 2).shape == (0, 5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.5", r"line 1\n.*0 0\.5 0\.5 0\.5\n.*class x y width height"),
        ("cat 0.5 0.5 0.5 0.5", "class x y"),
        ("0.5 0.5 0.5 0.5 0.5", "class x y"),
        ("0 0.5 nan 0.5 0.5", "class x y"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "class x y"),
        ("2 0.5 0.5 0.5 0.5", r"class 2\n.*0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0 100 50 20 20", "fractions of the image"),
        ("0 0.5 0.5 0.5 7 1 0.2", "fractions of the image"),
    ],
)
def test_broken_labels(tmp_path, line, words):
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / "a.txt", 2)


def test_where_labels_are():
    assert label_file(Path("x/images/train/a.b.jpg")) == Path("x/labels/train/a.b.txt")
    assert label_file(Path("images/x/images/a.png")) == Path("images/x/labels/a.txt")
    assert label_file(Path("x/a.JPG")) == Path("x/a.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train", "no names"),
        ("names: [cat, cat]\ntrain: images/train", "each once"),
        ("names: {0: cat, 2: dog}\ntrain: images/train", "dict from 0 on"),
        ("names: [cat, dog]\ntrain: images/nowhere", "no .*nowhere"),
        ("names: [cat, dog]\nval: images/val", r"split 'train'\n.*no such entry\n.*val"),
        ("names: [cat\n", "data.yaml"),
        ("names: !!python/object/apply:os.system [echo]\n", "could not determine"),
        ("names: [cat, dog]\ntrain: list.txt", r"1 of 1 images are missing; first: .*gone\.jpg"),
    ],
)
def test_broken_data_files(tmp_path, text, words):
    yolo_images_first(tmp_path, yaml=text)
    (tmp_path / "list.txt").write_text("./gone.jpg\n")
    with pytest.raises(InputError, match=words):
        read_yolo(tmp_path / "data.yaml", "train")


def test_a_list_of_images(tmp_path):
    yolo_images_first(tmp_path, yaml="names: [cat, dog]\ntrain: [images/val, one.txt]\n")
    (tmp_path / "one.txt").write_text("./images/train/b.jpg\r\n")
    data = read_yolo(tmp_path / "data.yaml", "train")
    assert [Path(name).name for name in data.files] == ["d.jpg", "e.jpg", "b.jpg"] and len(data.boxes) == 4
