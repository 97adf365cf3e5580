"""A data set of coloured rectangles in all three forms, and configs that train on it within seconds."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = os.environ.get("RESDET_TEST_THREADS", "1")  # of the processes that tests start
os.environ["MKL_DYNAMIC"] = "FALSE"  # as torch.set_num_threads has it below, and MKL then rounds alike in all processes
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
"""Class names in label order, and what tells the classes apart."""
CATEGORY_IDS = {"blue": 2, "green": 5, "red": 9}
"""With holes, so that a label that is taken for an id is seen."""
COUNTS = {"train": 8, "val": 5}
"""An odd number of validation images: two processes get unequal shares."""


class TinyData(NamedTuple):
    """Where the three forms of the data set lie."""

    root: Path
    images: Path
    """Folder of the pictures."""
    train: Path
    """COCO json."""
    val: Path
    """COCO json."""
    voc: Path
    """VOC devkit year with splits ``train`` and ``val``."""
    folders: Path
    """``train/<class>`` and ``val/<class>``."""


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between runs is kept in temporary folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESDET_CACHE", str(tmp_path_factory.mktemp("cache")))
        if "MPLCONFIGDIR" not in os.environ:
            patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The nets here are too small to share, unless it is threads that are tested (``tests/environments.py``)."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Eight training and five validation pictures of about 64 pixels with one to three rectangles."""
    return write_rectangles(tmp_path_factory.mktemp("tiny"))


def write_rectangles(root: Path) -> TinyData:
    """Write the data set in COCO form, VOC form and as folders."""
    draw = np.random.default_rng(0)
    voc = root / "VOC2007"
    data = TinyData(root, voc / "JPEGImages", root / "train.json", root / "val.json", voc, root / "folders")
    for folder in (data.images, voc / "Annotations", voc / "ImageSets" / "Main"):
        folder.mkdir(parents=True)
    image_id = 0
    for split, count in COUNTS.items():
        images, annotations = [], []
        for _ in range(count):
            image_id += 1
            name = f"{image_id:06}"
            height, width = (int(side) for side in draw.integers(56, 72, size=2))
            pixels = draw.integers(90, 130, size=(height, width, 3), dtype=np.uint8)
            objects = []
            for place in range(int(draw.integers(1, 4))):
                label = str(draw.choice(list(COLOURS)))
                w, h = (int(side) for side in draw.integers(14, 20, size=2))
                x = place * 20 if place * 20 + w <= width else width - w  # beside each other
                y = int(draw.integers(0, height - h))
                pixels[y : y + h, x : x + w] = COLOURS[label]
                objects.append((label, x, y, w, h))
                _crop(pixels[y : y + h, x : x + w], data.folders / split / label / f"{name}_{place}.png")
            Image.fromarray(pixels).save(data.images / f"{name}.png")
            _voc_xml(voc / "Annotations" / f"{name}.xml", f"{name}.png", (height, width), objects)
            images.append({"id": image_id * 10, "file_name": f"{name}.png", "height": height, "width": width})
            for label, x, y, w, h in objects:
                row = {"image_id": image_id * 10, "category_id": CATEGORY_IDS[label], "bbox": [x, y, w, h]}
                annotations.append({"id": len(annotations) + 1, **row, "area": w * h, "iscrowd": 0})
        categories = [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
        names = "\n".join(Path(image["file_name"]).stem for image in images)
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text(names + "\n")
    for split in COUNTS:  # every class has a picture in both, whatever was drawn
        for label, colour in COLOURS.items():
            for place in range(4):
                pixels = np.full((20, 20, 3), colour) + draw.integers(-30, 30, size=(20, 20, 3))
                _crop(np.clip(pixels, 0, 255).astype(np.uint8), data.folders / split / label / f"more_{place}.png")
    return data


def _crop(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _voc_xml(path: Path, image: str, hw: tuple[int, int], objects: list[tuple]) -> None:
    rows = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for label, x, y, w, h in objects
    )
    size = f"<size><width>{hw[1]}</width><height>{hw[0]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>{image}</filename>{size}{rows}</annotation>")


DETECTION = '''"""Rectangles.

Command:  python tools/train_det.py tiny_det.py
"""

from resdet.datasets.coco import read_coco
from resdet.detection.build import faster_rcnn_fpn

task = "detection"
metric = "coco"
augmentation = ()
train_data = dict(type=read_coco, annotation_file="{data.train}", image_root="{data.images}")
test_data = dict(type=read_coco, annotation_file="{data.val}", image_root="{data.images}")
model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet18-half",
    frozen_stages=0,
    frozen_batchnorm=False,
    shorter_side=64,
    longer_side=96,
    anchor_sizes=(16, 24, 32, 48, 64),
    pyramid_channels=16,
    head_width=32,
    rois_per_image=16,
    train_proposals=(60, 30),
    test_proposals=(60, 30),
)
loader = dict(batch_size=2, workers=0, test_batch_size=2)
optimizer = dict(lr=0.01, batch_size=2, clip_norm=10.0)
schedule = dict(unit="step", length=6, milestones=(4,), warmup_steps=2, validate_every=6)
run = dict(log_every=1)
'''

CLASSIFICATION = '''"""Crops of rectangles.

Command:  python tools/train_cls.py tiny_cls.py
"""

from resdet.classification.build import classifier
from resdet.datasets.sources import test_folder, training_folder

task = "classification"
metric = "classification"
train_data = dict(type=training_folder, root="{data.folders}", crop=32, shorter_side=(32, 40))
test_data = dict(type=test_folder, root="{data.folders}", crop=32, shorter_side=36)
model = dict(type=classifier, backbone="resnet18-half")
loader = dict(batch_size=8, workers=0, test_batch_size=8)
optimizer = dict(lr=0.02, batch_size=8)
schedule = dict(unit="step", length=6, validate_every=6)
run = dict(log_every=1)
'''


@pytest.fixture(scope="session")
def det_config(tiny: TinyData) -> Path:
    """A detection config of six steps."""
    path = tiny.root / "tiny_det.py"
    path.write_text(DETECTION.format(data=tiny))
    return path


@pytest.fixture(scope="session")
def cls_config(tiny: TinyData) -> Path:
    """A classification config of six steps."""
    path = tiny.root / "tiny_cls.py"
    path.write_text(CLASSIFICATION.format(data=tiny))
    return path


@pytest.fixture
def write_config(det_config: Path, tmp_path: Path) -> Callable[..., Path]:
    """``write_config(old=new)`` as texts: the detection config with lines of it changed."""

    def write(*changes: tuple[str, str], name: str = "changed.py", base: Path = det_config) -> Path:
        text = base.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def trained(det_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of a finished detection run of six steps."""
    from resdet.engine.config import load_config
    from resdet.engine.train import train

    work_dir = tmp_path_factory.mktemp("trained")
    train(load_config(det_config), work_dir=work_dir)
    return work_dir


@pytest.fixture
def rendezvous() -> str:
    """Where two processes of a test meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class TinyLocalization(NamedTuple):
    """A localization set in ILSVRC's folders, configs for it, and nets trained on it for six steps."""

    root: Path
    cls_config: Path
    config: Path
    """Of the first stage."""
    second_config: Path
    classifier: Path
    first: Path
    second: Path
    """Checkpoints."""


def write_localization(root: Path) -> Path:
    """Nine training and five validation pictures with one rectangle each; one training picture has no annotation."""
    draw = np.random.default_rng(1)
    for split, count in (("train", 9), ("val", 5)):
        for index in range(count):
            label = list(COLOURS)[index % len(COLOURS)]
            height, width = (int(side) for side in draw.integers(44, 60, size=2))
            w, h = (int(side) for side in draw.integers(18, 30, size=2))
            x, y = int(draw.integers(0, width - w)), int(draw.integers(0, height - h))
            pixels = draw.integers(90, 130, size=(height, width, 3), dtype=np.uint8)
            pixels[y : y + h, x : x + w] = COLOURS[label]
            name = f"{split}_{index}"
            _crop(pixels, root / "Data" / "CLS-LOC" / split / label / f"{name}.png")
            folder = root / "Annotations" / "CLS-LOC" / split / (label if split == "train" else "")
            folder.mkdir(parents=True, exist_ok=True)
            if name != "train_8":
                _voc_xml(folder / f"{name}.xml", f"{name}.png", (height, width), [(label, x - 1, y - 1, w, h)])
    return root


LOCALIZATION = '''"""Rectangles, one in each picture.

Command:  python tools/train_loc.py tiny_loc.py
"""

from resdet.datasets.imagenet_loc import read_imagenet_loc
from resdet.localization.build import per_class_rpn_localizer

task = "localization"
metric = "localization"
train_data = dict(type=read_imagenet_loc, root="{root}")
test_data = dict(type=read_imagenet_loc, root="{root}", split="val")
model = dict(
    type=per_class_rpn_localizer,
    backbone="resnet18-half",
    frozen_batchnorm=False,
    crop=32,
    anchor_sizes=(16, 24),
    anchors_per_image=4,
)
crop = dict(shorter_side=(36, 48))
loader = dict(batch_size=4, workers=0, test_batch_size=2)
optimizer = dict(lr=0.01, batch_size=4, clip_norm=10.0)
schedule = dict(unit="step", length=6, milestones=(4,), warmup_steps=2, validate_every=6)
run = dict(log_every=1)
'''

SECOND_STAGE = '''"""Regions of the pictures.

Command:  python tools/train_loc.py tiny_loc_rcnn.py
"""

from mmengine.config import read_base

with read_base():
    from .tiny_loc import *

from resdet.localization.build import region_localizer

del crop
model = dict(type=region_localizer, backbone="resnet18-half", frozen_batchnorm=False, side=32)
regions = dict(first="{root}/first/last.pth", per_image=3, positive_fraction=0.5)
test = dict(view="dense", sides=(40,), proposals=6)
'''


@pytest.fixture(scope="session")
def tiny_loc(tmp_path_factory: pytest.TempPathFactory) -> TinyLocalization:
    """Everything that localization needs, trained for six steps each."""
    from resdet.engine.config import load_config
    from resdet.engine.train import train

    root = write_localization(tmp_path_factory.mktemp("tiny_loc"))
    texts = {
        "tiny_loc_cls": CLASSIFICATION.replace("{data.folders}", str(root / "Data" / "CLS-LOC")),
        "tiny_loc": LOCALIZATION.format(root=root),
        "tiny_loc_rcnn": SECOND_STAGE.format(root=root),
    }
    for name, text in texts.items():
        (root / f"{name}.py").write_text(text)
    configs = [root / f"{name}.py" for name in texts]
    dirs = [root / name for name in ("cls", "first", "second")]
    for config, work_dir in zip(configs, dirs, strict=True):
        train(load_config(config), work_dir=work_dir)
    return TinyLocalization(root, *configs, *(work_dir / "last.pth" for work_dir in dirs))


@pytest.fixture(scope="session")
def other_loc(tiny_loc: TinyLocalization, tmp_path_factory: pytest.TempPathFactory) -> TinyLocalization:
    """The same with other weights in all three nets."""
    root, generator = tmp_path_factory.mktemp("other_loc"), torch.Generator().manual_seed(1)
    changed = {}
    for name in ("classifier", "first", "second"):
        loaded = torch.load(getattr(tiny_loc, name), weights_only=False)
        for value in loaded["state_dict"].values():
            if value.is_floating_point() and value.dim() > 1:
                value.add_(torch.randn(value.shape, generator=generator) * value.std())
        changed[name] = root / f"{name}.pth"
        torch.save(loaded, changed[name])
    return tiny_loc._replace(**changed)
