from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from resdet.datasets.folder import FolderDataset, read_folder
from resdet.datasets.views import CenterView, PaperView
from resdet.errors import InputError


def write(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), colour).save(path)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "train" / "n02" / "b.JPEG")
    write(tmp_path / "train" / "n02" / "a.png", (200, 0, 50))
    write(tmp_path / "train" / "n01" / "images" / "c.jpg")
    write(tmp_path / "val" / "n01" / "d.jpg")
    write(tmp_path / "val" / "n02" / "e.jpg")
    return tmp_path


def test_read_folder_by_hand(root):
    (root / "train" / "n01" / "boxes.txt").write_text("no image")
    (root / "train" / "n01" / "._c.jpg").write_text("no image either")
    (root / "train" / "classes.txt").write_text("beside the classes")
    index = read_folder(root, "train")
    assert index.classes == ("n01", "n02")
    names = [index.files[i].replace("\\", "/") for i in range(len(index))]
    assert names == ["n01/images/c.jpg", "n02/a.png", "n02/b.JPEG"]
    assert index.labels.dtype == np.int64
    np.testing.assert_array_equal(index.labels, [0, 1, 1])


def test_samples(root):
    dataset = FolderDataset(root, "train", view=CenterView(crop=6, shorter_side=9))
    image, label = dataset[1]
    assert label == 1 and type(label) is int and len(dataset) == 3 and dataset.classes == ("n01", "n02")
    expected = torch.tensor([200, 0, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 6, 6)
    torch.testing.assert_close(image, expected, rtol=0, atol=0)
    assert image.is_contiguous()


def test_a_sample_is_a_function_of_its_key(root):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "train" / "n02" / "a.png")
    dataset = FolderDataset(root, "train", view=PaperView(crop=6, shorter_side=(7, 12)))
    copy = pickle.loads(pickle.dumps(dataset))
    for key in (1, (1, 0), (1, 5), (np.int64(1), 2**40)):
        torch.testing.assert_close(dataset[key], copy[key], rtol=0, atol=0)
    torch.testing.assert_close(dataset[1], dataset[1, 0], rtol=0, atol=0)
    assert (dataset[1, 1][0] != dataset[1, 2][0]).any()
    Image.fromarray(noise).save(root / "train" / "n02" / "z.png")  # the same picture in another row
    other = FolderDataset(root, "train", view=dataset.view)
    assert any((other[1, seed][0] != other[3, seed][0]).any() for seed in range(3))


def test_every_sample_once(root):
    dataset = FolderDataset(root, "train", view=CenterView(crop=6, shorter_side=9))
    assert [label for _, label in dataset] == [0, 1, 1]  # iteration ends at the IndexError
    with pytest.raises(IndexError, match="image -1 of 3"):
        dataset[-1]


def test_missing_folders(root):
    with pytest.raises(InputError, match=r"no folder .*nowhere[\s\S]*layout of ILSVRC-2012"):
        read_folder(root / "nowhere", "train")
    with pytest.raises(InputError, match=r"test\n.*no such folder; only train, val\n"):
        read_folder(root, "test")


def test_loose_images(root):
    # The val archive of ILSVRC-2012 unpacks without class folders.
    write(root / "flat" / "val" / "x.JPEG")
    with pytest.raises(InputError, match="no class folders, 1 files beside each other"):
        read_folder(root / "flat", "val")


def test_empty_class(root):
    for split in ("train", "val"):
        (root / split / "n03").mkdir()
    with pytest.raises(InputError, match="1 of 3 class folders without an image: n03"):
        read_folder(root, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_different_classes(root, split):
    write(root / "val" / "n03" / "x.jpg")
    with pytest.raises(InputError, match=r"2 in|3 in") as caught:
        read_folder(root, split)
    here, there = ("nothing", "n03") if split == "train" else ("n03", "nothing")
    assert f"only here: {here}; only there: {there}" in str(caught.value)


def test_one_split_is_enough(root):
    (root / "val").rename(root / "other")
    assert len(read_folder(root, "train")) == 3
    assert len(read_folder(root, "other")) == 2


def test_an_image_that_does_not_decode(root):
    (root / "train" / "n02" / "a.png").write_bytes(b"no picture")
    dataset = FolderDataset(root, "train", view=CenterView(crop=6, shorter_side=9))
    with pytest.raises(InputError, match=r"a\.png"):
        dataset[1]
