from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from resdet.datasets.folder import FolderDataset
from resdet.datasets.loading import TrainBatches
from resdet.datasets.resident import ResidentBatches
from resdet.datasets.small_images import ResizedCrop, read_small_images, test_small_images, training_small_images
from resdet.datasets.sources import test_folder
from resdet.errors import InputError

test_small_images.__test__ = test_folder.__test__ = False  # of the package, not of this file
HALF = 2**31  # a draw of one half: the middle


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for split, label, hw in (
        ("train", "a", (8, 8)),
        ("train", "b", (8, 12)),
        ("val", "a", (9, 8)),
        ("val", "b", (8, 8)),
    ):
        folder = tmp_path / "set" / split / label
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(draw.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "set"


def view(images, *, area, aspect, top, left, mirror=2**32 - 1, **settings):
    choice = torch.tensor([[area], [aspect], [top], [left], [mirror]])
    return ResizedCrop(**settings)(images, torch.tensor([0]), choice, fill=None)[0]


def test_a_whole_image_is_enlarged_as_by_torchvision():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8))
    ours = view(image, area=2**32 - 1, aspect=HALF, top=0, left=0, crop=16)
    theirs = v2.functional.resize(image, [16, 16], antialias=False)[0]
    torch.testing.assert_close(ours.int(), theirs.int(), rtol=0, atol=1)  # roundings of halves


def test_a_part_by_hand():
    # Of the 4 x 4 image 0 .. 15 a quarter of the area at aspect 1: 2 x 2 pixels. Of the 3 places per axis the draws
    # take the last (2) from the top and the first (0) from the left: 8 9 / 12 13, enlarged by 1, so as it is.
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    where = dict(area=0, aspect=HALF, top=2**32 - 1, left=0, crop=2, least_area=0.25)
    assert view(image, **where).tolist() == [[[8, 9], [12, 13]]]
    assert view(image, **where, mirror=0).tolist() == [[[9, 8], [13, 12]]]
    # Four columns of the same part: centres of the view's pixels at -1/4, 1/4, 3/4, 5/4 of the crop's, cut to 0 .. 1,
    # so that no pixel beside the crop (10, 14) shows: 8, 8.25, 8.75, 9 in the first row.
    assert view(image, **where | {"crop": 4})[0, 0].tolist() == [8, 8, 9, 9]


@pytest.mark.parametrize(("aspect", "hw"), [(0, (5, 4)), (HALF, (4, 4)), (2**32 - 1, (4, 5))])
def test_aspects(aspect, hw):
    # 8 x 8 pixels, a quarter of the area: sides sqrt(16 * 4/3) = 4.6 and sqrt(16 * 3/4) = 3.5, rounded to even: 5 and 4
    # (3.46 to 3). The number of different values along each axis of an image of its own coordinates tells the sides.
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    image = torch.stack([y, x]).to(torch.uint8)[None]
    part = view(image, area=0, aspect=aspect, top=0, left=0, crop=64, least_area=0.25)
    expected = {(5, 4): (5, 3), (4, 4): (4, 4), (4, 5): (3, 5)}[hw]
    assert (len(part[0].unique()), len(part[1].unique())) == expected


def test_every_view_lies_in_its_image_and_draws_are_uniform():
    images = torch.full((2000, 1, 8, 8), 77, dtype=torch.uint8)
    crop, index = ResizedCrop(crop=8, least_area=0.1), torch.arange(2000)
    choice = crop.choose(index, torch.zeros(2000, dtype=torch.int64))
    assert (crop(images, index, choice, fill=None) == 77).all()
    means = choice.double().mean(1) / 2**32
    torch.testing.assert_close(means, torch.full((5,), 0.5, dtype=torch.float64), rtol=0, atol=0.03)  # sigma 0.0065


def test_images_are_those_of_the_folder(root):
    ours, theirs = test_small_images(root=root, crop=8, shorter_side=8), test_folder(root=root, crop=8, shorter_side=8)
    assert ours.classes == theirs.classes == ("a", "b") and len(ours) == len(theirs) == 6
    for row in range(6):
        assert ours[row][1] == theirs[row][1] and torch.equal(ours[row][0], theirs[row][0])


def test_kept_until_a_file_changes(root, monkeypatch):
    first = read_small_images(root, "train", side=8).images
    reads = []
    real = FolderDataset.__getitem__
    monkeypatch.setattr(FolderDataset, "__getitem__", lambda data, row: reads.append(row) or real(data, row))
    assert torch.equal(read_small_images(root, "train", side=8).images, first) and not reads
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "train" / "a" / "1.png")
    again = read_small_images(root, "train", side=8)
    assert len(reads) == 6 and again.images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_batches_on_the_device_are_those_of_a_loader(root):
    data = training_small_images(root=root, side=8, crop=12)
    sampler = TrainBatches(len(data), batch_size=4, seed=3)
    ours, theirs = iter(ResidentBatches(data, sampler, device="cpu")), iter(DataLoader(data, batch_sampler=sampler))
    for _ in range(3):
        (a, b), (c, d) = next(ours), next(theirs)
        assert a.shape == (4, 3, 12, 12) and torch.equal(a, c) and torch.equal(b, d)


def test_refused(root):
    with pytest.raises(InputError, match=r"side = 64, crop = 32\n.*training_folder"):
        training_small_images(root=root, side=64, crop=32)
    with pytest.raises(InputError, match="least_area = 0"):
        ResizedCrop(least_area=0)
    (root / "train" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png"):
        training_small_images(root=root, side=8, crop=12)
