from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.file_names import FileNames
from resdet.datasets.loading import TrainBatches, collate
from resdet.datasets.transforms import augmentation
from resdet.errors import InputError


@pytest.fixture
def annotations(tmp_path):
    """Two images of noise, 10 x 20 with two boxes and 16 x 8 with none."""
    rng = np.random.default_rng(0)
    for name, hw in (("a.png", (10, 20)), ("b.png", (16, 8))):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(tmp_path / name)
    return Annotations(
        source="ann.json",
        image_root=str(tmp_path),
        classes=("cat", "dog"),
        category_ids=np.array([1, 2]),
        image_ids=np.array([70, 90]),
        files=FileNames(["a.png", "b.png"]),
        hw=np.array([[10, 20], [16, 8]], dtype=np.int32),
        first=np.array([0, 2, 2]),
        boxes=np.array([[1, 2, 4, 8], [0, 0, 20, 10]], dtype=np.float32),
        labels=np.array([1, 0]),
        ignore=np.array([False, True]),
        areas=np.array([18, 200], dtype=np.float32),
        box_ids=np.array([1, 2]),
    )


def test_by_hand(annotations):
    dataset = DetectionDataset(annotations)
    image, target = dataset[0]
    pixels = np.asarray(Image.open(annotations.path(0)))
    assert image.dtype == torch.uint8 and image.shape == (3, 10, 20)
    assert image.permute(1, 2, 0).is_contiguous()  # channels last
    np.testing.assert_array_equal(image[:, 3, 7].numpy(), pixels[3, 7])  # row 3, column 7
    torch.testing.assert_close(target.boxes, torch.tensor([[1.0, 2, 4, 8], [0, 0, 20, 10]]), rtol=0, atol=0)
    torch.testing.assert_close(target.labels, torch.tensor([1, 0]))
    torch.testing.assert_close(target.ignore, torch.tensor([False, True]))
    assert (target.image_id, target.original_hw) == (70, (10, 20))
    assert dataset.classes == ("cat", "dog") and len(dataset) == 2


def test_image_without_objects(annotations):
    for transform in (None, augmentation(["flip", "crop"])):
        _, target = DetectionDataset(annotations, transform=transform)[1]
        assert target.boxes.shape == (0, 4) and target.labels.shape == target.ignore.shape == (0,)
        assert (target.boxes.dtype, target.labels.dtype, target.ignore.dtype) == (
            torch.float32,
            torch.int64,
            torch.bool,
        )


def test_key_with_a_seed(annotations):
    dataset = DetectionDataset(annotations, transform=augmentation())
    plain, _ = DetectionDataset(annotations)[0]
    samples = {seed: dataset[0, seed] for seed in range(10)}
    flipped = [seed for seed, (image, _) in samples.items() if not torch.equal(image, plain)]
    assert 0 < len(flipped) < 10
    image, target = dataset[0, flipped[0]]
    torch.testing.assert_close(image, plain.flip(2))
    torch.testing.assert_close(target.boxes, torch.tensor([[16.0, 2, 19, 8], [0, 0, 20, 10]]))  # 20 - 4, 20 - 1
    assert image.permute(1, 2, 0).is_contiguous() and target.original_hw == (10, 20)


def test_index_alone_draws_from_torch(annotations):
    dataset = DetectionDataset(annotations, transform=augmentation())
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([dataset[0][0] for _ in range(8)])
    assert (
        all(torch.equal(a, b) for a, b in zip(*runs, strict=True)) and len({i.numpy().tobytes() for i in runs[0]}) == 2
    )


def test_dropped_boxes_take_their_labels_along(annotations):
    def keep_the_second(image, boxes, seed):
        return image, boxes[1:], np.array([1])

    _, target = DetectionDataset(annotations, transform=keep_the_second)[0]
    assert target.labels.tolist() == [0] and target.ignore.tolist() == [True] and len(target.boxes) == 1


def test_workers_change_nothing(annotations):
    dataset = DetectionDataset(annotations, transform=augmentation(["flip", "crop", "colour"]))
    loaded = []
    for workers in (0, 2):
        batches = iter(TrainBatches(2, 2, seed=1))
        sampler = [next(batches) for _ in range(3)]
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        loaded.append([image for images, _ in loader for image in images])
    assert len(loaded[0]) == 6
    torch.testing.assert_close(loaded[0], loaded[1], rtol=0, atol=0)


def test_sizes_from_headers(annotations):
    unknown = dataclasses.replace(annotations, hw=np.zeros((2, 2), dtype=np.int32))
    dataset = DetectionDataset(unknown)
    np.testing.assert_array_equal(dataset.hw, [[10, 20], [16, 8]])
    assert dataset[1][0].shape == (3, 16, 8)


@pytest.mark.parametrize(("orientation", "hw"), [(1, (101, 202)), (6, (202, 101))])
def test_a_large_photograph_is_decoded_small(annotations, tmp_path, orientation, hw):
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.new("RGB", (202, 101)).save(tmp_path / "a.jpg", exif=tags)
    files, sizes = FileNames(["a.jpg", "b.png"]), np.array([hw, (16, 8)], dtype=np.int32)
    large = dataclasses.replace(annotations, files=files, hw=sizes)
    # 101 x 202 at 1/2 is 51 x 101 (rounded up), at 1/4 26 x 51: shorter than 40. Boxes go by 51 / 101 and 101 / 202.
    image, target = DetectionDataset(large, least_side=40)[0]
    reduced_hw = tuple(-(-side // 2) for side in hw)
    assert image.shape[1:] == reduced_hw and target.original_hw == hw
    ratio = torch.tensor(reduced_hw[::-1] * 2) / torch.tensor(hw[::-1] * 2)
    torch.testing.assert_close(target.boxes, torch.tensor([[1.0, 2, 4, 8], [0, 0, 20, 10]]) * ratio)
    assert DetectionDataset(large, least_side=51)[0][0].shape[1:] == hw
    assert DetectionDataset(large)[0][0].shape[1:] == hw
    assert DetectionDataset(large, least_side=1)[1][0].shape[1:] == (16, 8)  # no JPEG
    wrong = dataclasses.replace(large, hw=np.array([reduced_hw, (16, 8)], dtype=np.int32))
    with pytest.raises(InputError, match=f"{hw[0]} x {hw[1]} pixels"):  # the whole image is what must fit
        DetectionDataset(wrong, least_side=40)[0]


def save_turned(annotations):
    tags = Image.Exif()
    tags[0x0112] = 6  # stored 10 x 20, displayed 20 x 10
    Image.open(annotations.path(0)).save(annotations.path(0), exif=tags)


def test_turned_image_annotated_as_stored(annotations):
    plain, _ = DetectionDataset(annotations)[0]
    save_turned(annotations)
    image, target = DetectionDataset(annotations)[0]
    torch.testing.assert_close(image, plain)
    assert target.original_hw == (10, 20)


def test_turned_image_annotated_as_displayed(annotations):
    plain, _ = DetectionDataset(annotations)[0]
    save_turned(annotations)
    image, target = DetectionDataset(dataclasses.replace(annotations, hw=np.array([[20, 10], [16, 8]])))[0]
    torch.testing.assert_close(image, plain.rot90(-1, (1, 2)))  # clockwise
    assert target.original_hw == (20, 10)


def test_wrong_size_is_told(annotations):
    wrong = dataclasses.replace(annotations, hw=np.array([[10, 21], [16, 8]], dtype=np.int32))
    with pytest.raises(InputError, match=r"a\.png\n.*10 x 20 pixels.*\n.*10 x 21 pixels.*ann\.json"):
        DetectionDataset(wrong)[0]


def test_image_that_does_not_decode(annotations):
    with open(annotations.path(0), "wb") as file:
        file.write(b"nothing")
    with pytest.raises(InputError, match=r"a\.png\n.*does not decode"):
        DetectionDataset(annotations)[0]


def test_empty_set(annotations):
    empty = dataclasses.replace(
        annotations, image_ids=np.zeros(0, int), files=FileNames([]), hw=np.zeros((0, 2), int), first=np.zeros(1, int)
    )
    with pytest.raises(InputError, match=r"ann\.json\n.*empty data set"):
        DetectionDataset(empty)
    dataset = DetectionDataset(annotations)
    with pytest.raises(IndexError):
        dataset[2]
