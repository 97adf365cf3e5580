from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from resdet.datasets import resident
from resdet.datasets.cifar import ArrayData
from resdet.datasets.loading import EvaluationShare, TrainBatches
from resdet.datasets.resident import CropFlip, ResidentBatches, ResidentDataset, draws
from resdet.errors import InputError


def exactly(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def random_data(n=23, height=8, width=6):
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (n, 3, height, width), dtype=np.uint8))
    return ArrayData(images, torch.from_numpy(draw.integers(4, size=n)), ("a", "b", "c", "d"), "made here")


@pytest.fixture
def dataset():
    return ResidentDataset(random_data(), augmentation=CropFlip(pad=2))


# ------------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize(
    ("top", "left", "mirrored", "expected"),
    [
        # 9 9 9 9 9    The image 1 2 3 / 4 5 6 padded by one pixel of 9; crops of 2 x 3 of it.
        # 9 1 2 3 9
        # 9 4 5 6 9
        # 9 9 9 9 9
        (1, 1, False, [[1, 2, 3], [4, 5, 6]]),
        (1, 1, True, [[3, 2, 1], [6, 5, 4]]),
        (0, 0, False, [[9, 9, 9], [9, 1, 2]]),
        (0, 0, True, [[9, 9, 9], [2, 1, 9]]),  # first cropped, then mirrored
        (2, 1, False, [[4, 5, 6], [9, 9, 9]]),
        (1, 2, False, [[2, 3, 9], [5, 6, 9]]),
        (2, 2, True, [[9, 6, 5], [9, 9, 9]]),
    ],
)
def test_crops_by_hand(top, left, mirrored, expected):
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    images = torch.stack([torch.zeros(2, 2, 3).byte(), torch.stack([image, image + 100])])  # of two, the second
    choice = torch.tensor([[top], [left], [mirrored]])
    crop = CropFlip(pad=1)(images, torch.tensor([1]), choice, fill=torch.tensor([9, 109]).byte())
    expected = torch.tensor(expected)
    exactly(crop, torch.stack([expected, expected + 100])[None].byte())


def test_choices_by_hand(monkeypatch):
    # With 9 places: 0 and 8 as they are, 9 is 0 again, 2**32 - 1 = 9 * 477,218,588 + 3. Mirrored: below 2**32 * 0.25.
    numbers = [[0, 8, 9, 2**32 - 1], [1, 17, 18, 19], [0, 2**30 - 1, 2**30, 2**32 - 1]]
    monkeypatch.setattr(resident, "draws", lambda index, seed, count: torch.tensor(numbers))
    assert CropFlip(flip=0.25).choose(None, None).tolist() == [[0, 8, 0, 3], [1, 8, 0, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("varied", ["seed", "index"])
def test_every_crop_is_one_of_the_possible_ones_and_all_come_alike(varied):
    # Pixels of one image differ, so a crop tells its place: 9 x 9 places, mirrored or not.
    image = torch.from_numpy(np.random.default_rng(0).permutation(192).reshape(3, 8, 8).astype(np.uint8))
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), constant_values=200)
    possible = {}
    for top, left in itertools.product(range(9), range(9)):
        crop = padded[:, top : top + 8, left : left + 8]
        possible[crop.tobytes()] = (top, left, 0)
        possible[crop[:, :, ::-1].tobytes()] = (top, left, 1)
    assert len(possible) == 162
    n = 162 * 100
    number, same = torch.arange(n), torch.full((n,), 12345)
    index, seed = (same, number) if varied == "seed" else (number, same)
    # As many copies of the image as there are indices, without the memory.
    images = image.expand(n if varied == "index" else 12346, 3, 8, 8)
    crops = CropFlip()(images, index, CropFlip().choose(index, seed), fill=torch.tensor([200] * 3, dtype=torch.uint8))
    counts = dict.fromkeys(possible.values(), 0)
    for crop in crops.numpy():
        counts[possible[crop.tobytes()]] += 1
    # Chi-square with 161 degrees of freedom: 161 on average, standard deviation (2 * 161) ** 0.5 = 18.
    assert 161 - 5 * 18 < sum((c - 100) ** 2 / 100 for c in counts.values()) < 161 + 5 * 18


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_share_of_mirrored(flip):
    mirrored = CropFlip(flip=flip).choose(torch.zeros(10_000, dtype=torch.int64), torch.arange(10_000))[2]
    # Standard deviation of the mean at 0.25: (0.25 * 0.75 / 10,000) ** 0.5 = 0.0043.
    assert float(mirrored.double().mean()) == pytest.approx(flip, abs=0.02 if flip == 0.25 else 0)


def murmur(x):
    """MurmurHash3's finaliser in whole numbers without bounds."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def test_draws_against_plain_numbers():
    assert murmur(1) == 0x514E28B7  # a known value of the finaliser
    generator = np.random.default_rng(0)
    index, seed = generator.integers(0, 2**32, 200), generator.integers(0, 2**40, 200)
    expected = [
        [murmur((murmur((murmur(int(s) % 2**32) + int(i)) % 2**32) + j * 0x9E3779B9) % 2**32) for j in (1, 2, 3)]
        for i, s in zip(index, seed, strict=True)
    ]
    exactly(draws(torch.from_numpy(index), torch.from_numpy(seed), 3), torch.tensor(expected).T)


def test_draws_do_not_depend_on_each_other():
    # Of keys that differ by one, in either part, and of one key's three: correlations within 4 / sqrt(20,000) = 0.028.
    number, zero = torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64)
    for index, seed in ((number, zero), (zero, number), (number, number)):
        rows = draws(index, seed, 3).double()
        rows = torch.cat([rows[:, :-1], rows[:, 1:]])
        correlations = torch.corrcoef(rows) - torch.eye(6, dtype=torch.float64)
        assert float(correlations.abs().max()) < 0.028


def test_settings_out_of_range():
    with pytest.raises(InputError, match=r"pad = -1\n.*0 or more pixels"):
        CropFlip(pad=-1)
    for flip in (-0.1, 1.5):
        with pytest.raises(InputError, match=rf"flip = {flip}\n.*a probability"):
            CropFlip(flip=flip)


# ------------------------------------------------------------------------------------------------------ data set


def test_the_padding_is_the_mean_colour():
    images = torch.tensor([[10, 20], [250, 0], [3, 4]], dtype=torch.uint8).view(3, 1, 1, 2)
    images = images.permute(1, 0, 2, 3)  # one image of 1 x 2: red 10, 20; green 250, 0; blue 3, 4
    data = ResidentDataset(ArrayData(images, torch.tensor([0]), ("a",), "x"), augmentation=CropFlip(pad=9))
    assert data.fill.tolist() == [15, 125, 4]  # 3.5 to the even one
    seen = {tuple(data[0, seed][0][:, 0, 0].tolist()) for seed in range(200)}
    assert (15, 125, 4) in seen
    assert seen <= {(15, 125, 4), (10, 250, 3), (20, 0, 4)}


def test_samples(dataset):
    plain = ResidentDataset(random_data())
    image, label = plain[5]
    exactly(image, random_data().images[5])
    assert label == int(random_data().labels[5]) and type(label) is int
    assert len(plain) == 23 and plain.classes == ("a", "b", "c", "d") and plain.resident
    exactly(dataset[5], dataset[5, 0])
    assert any((dataset[5, 1][0] != dataset[5, seed][0]).any() for seed in (2, 3, 4))
    exactly(pickle.loads(pickle.dumps(dataset))[5, 7], dataset[5, 7])
    assert dataset[np.int64(5), 7][1] == label
    for row in (-1, 23):
        with pytest.raises(IndexError, match=f"image {row} of 23"):
            dataset[row]


def test_without_images():
    with pytest.raises(InputError, match=r"made here\n.*no images"):
        ResidentDataset(ArrayData(torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), ("a",), "made here"))


# ------------------------------------------------------------------------------------------------------ batches


def first(batches, count):
    return list(itertools.islice(batches, count))


def test_batches_are_those_of_a_loader(dataset):
    sampler = TrainBatches(len(dataset), 7, seed=3)
    batches = ResidentBatches(dataset, sampler, device="cpu")
    assert batches.dataset is dataset and batches.batch_sampler is sampler
    images, labels = next(iter(batches))
    assert images.shape == (7, 3, 8, 6) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    for mine, loaded in zip(first(batches, 9), DataLoader(dataset, batch_sampler=sampler), strict=False):
        exactly(list(mine), loaded)


def test_evaluation_batches_are_those_of_a_loader():
    plain = ResidentDataset(random_data())
    share = EvaluationShare(23, 5)
    batches = ResidentBatches(plain, share, device=torch.device("cpu"))
    assert len(batches) == 5 and len(batches.dataset) == 23
    for mine, loaded in zip(batches, DataLoader(plain, batch_sampler=share), strict=True):
        exactly(list(mine), loaded)
    exactly(torch.cat([images for images, _ in batches]), random_data().images)


def test_a_resumed_run_goes_on_exactly(dataset):
    whole = first(ResidentBatches(dataset, TrainBatches(23, 4, seed=1), device="cpu"), 12)
    resumed = ResidentBatches(
        ResidentDataset(random_data(), augmentation=CropFlip(pad=2)), TrainBatches(23, 4, seed=1), device="cpu"
    )
    resumed.batch_sampler.first_step = 8
    exactly(first(resumed, 4), whole[8:])
    other = first(ResidentBatches(dataset, TrainBatches(23, 4, seed=2), device="cpu"), 12)
    assert any((a[0] != b[0]).any() for a, b in zip(other, whole, strict=True))


def test_two_processes_see_the_halves_of_one(dataset):
    one = first(ResidentBatches(dataset, TrainBatches(23, 6), device="cpu"), 10)
    halves = [first(ResidentBatches(dataset, TrainBatches(23, 3, rank=r, world=2), device="cpu"), 10) for r in (0, 1)]
    for whole, *parts in zip(one, *halves, strict=True):
        exactly(tuple(map(torch.cat, zip(*parts, strict=True))), whole)

    plain = ResidentDataset(random_data())
    shares = [ResidentBatches(plain, EvaluationShare(23, 4, rank=r, world=2), device="cpu") for r in (0, 1)]
    seen = [images for share in shares for images, _ in share]
    assert sorted(i.numpy().tobytes() for i in torch.cat(seen)) == sorted(
        i.numpy().tobytes() for i in random_data().images
    )


def test_the_set_is_moved_once(dataset, monkeypatch):
    images = dataset.batch([0], torch.device("cpu"))[0]
    monkeypatch.setattr(dataset, "data", None)
    for batches in (ResidentBatches(dataset, [[0]], device="cpu") for _ in range(2)):
        exactly(next(iter(batches))[0], images)


def test_as_configs_name_them(tmp_path):
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        path = tmp_path / "set" / split / label / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (10, 20, 30) if label == "cat" else (30, 20, 10)).save(path)
    root = str(tmp_path / "set")
    training, test = resident.training_cifar(root=root), resident.test_cifar(root=root)
    assert training.classes == test.classes == ("cat", "dog") and len(training) == len(test) == 2
    assert training.augmentation == CropFlip(pad=4, flip=0.5) and test.augmentation is None
    assert training.fill.tolist() == [20, 20, 20]
    changed = resident.training_cifar(root=root, split="test", name="cifar100", pad=2, flip=0)
    assert changed.augmentation == CropFlip(2, 0) and changed.data.source.endswith("set, test")
    for make in (resident.training_cifar, resident.test_cifar):
        with pytest.raises(InputError, match="'cifar'"):
            make(root=root, name="cifar")
