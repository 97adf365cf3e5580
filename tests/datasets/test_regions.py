from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from resdet.datasets.annotations import Annotations
from resdet.datasets.file_names import FileNames
from resdet.datasets.regions import RegionDataset
from resdet.errors import InputError

PROPOSALS = np.array([[[2, 2, 22, 22], [30, 0, 50, 20], [0, 0, 0, 0]]], np.float32)  # the last row is padding


@pytest.fixture
def data(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Annotations(
        source="test",
        image_root=str(tmp_path),
        classes=("one", "two"),
        category_ids=np.array([1, 2]),
        image_ids=np.array([5]),
        files=FileNames(["a.png"]),
        hw=np.array([[40, 60]], np.int32),
        first=np.array([0, 1]),
        boxes=np.array([[0, 0, 20, 20]], np.float32),
        labels=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([400.0], np.float32),
        box_ids=np.array([1]),
    )


def test_regions_are_proposals_and_the_object(data):
    # IoU of the first proposal with the object: 18 x 18 / (2 * 400 - 324) = 0.68, positive; the second one's is 0.
    image, regions = RegionDataset(data, PROPOSALS, count=8, flip=0, colour_std=0)[0]
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    rows = sorted((*box.tolist(), right) for box, right in zip(regions.boxes, regions.positive.tolist(), strict=True))
    assert rows == [(0, 0, 20, 20, True), (2, 2, 22, 22, True), (30, 0, 50, 20, False)]
    assert regions.label == 1
    assert (regions.matched_gt_boxes == torch.tensor([0.0, 0, 20, 20])).all()


def test_mirrored_with_the_image(data):
    plain, regions = RegionDataset(data, PROPOSALS, count=8, flip=0, colour_std=0)[0]
    image, mirrored = RegionDataset(data, PROPOSALS, count=8, flip=1, colour_std=0)[0]
    assert torch.equal(image, plain.flip(2))
    for before, after in ((regions.boxes, mirrored.boxes), (regions.matched_gt_boxes, mirrored.matched_gt_boxes)):
        back = after.clone()
        back[:, [0, 2]] = 60 - after[:, [2, 0]]
        assert {tuple(box) for box in back.tolist()} == {tuple(box) for box in before.tolist()}


def test_a_function_of_the_key(data):
    many = np.random.default_rng(0).uniform(0, 20, (1, 50, 4)).astype(np.float32)
    many[..., 2:] += many[..., :2] + 1
    regions = RegionDataset(data, many, count=4)
    first, again, other = regions[0, 3], regions[0, 3], regions[0, 4]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1].boxes, again[1].boxes)
    assert not torch.equal(first[1].boxes, other[1].boxes)
    assert len(first[1].boxes) == 4
    seen = {regions[0, seed][0].sum().item() for seed in range(6)}
    assert len(seen) > 3  # colours are shifted


def test_proposals_of_other_images(data):
    with pytest.raises(InputError, match=r"those of 2 images\n.*those of the 1 images of test"):
        RegionDataset(data, np.zeros((2, 3, 4)))
