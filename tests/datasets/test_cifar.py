from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from resdet.datasets import cifar
from resdet.datasets.cifar import PUBLISHED, ArrayData, read_cifar, split_rows
from resdet.errors import InputError
from resdet.files import kept_path

NAMES = {"cifar10": [f"class{i}" for i in range(10)], "cifar100": [f"class{i:02}" for i in range(100)]}
FEWER = {"cifar10": 500, "cifar100": 100}
"""By how much the sets made here are smaller: CIFAR-10 has 100 + 20 images (20 a file), CIFAR-100 has 500 + 100."""


def make(name):
    """Random pixels and labels, each class in both splits: ((n, 3072) uint8, n labels) for each split."""
    draw = np.random.default_rng(0)
    data = {}
    for split, published in (("train", 50_000), ("test", 10_000)):
        n, k = published // FEWER[name], len(NAMES[name])
        labels = draw.permutation(np.concatenate([np.arange(k), draw.integers(k, size=n - k)]))
        data[split] = (draw.integers(0, 256, (n, 3072), dtype=np.uint8), labels.tolist())
    return data


def files_of(data, name, split):
    """The rows of each original file, without the endings."""
    pixels, labels = data[split]
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}[split]
    files = files if name == "cifar10" else [split]
    size = len(labels) // len(files)
    return {f: (pixels[i * size :][:size], labels[i * size :][:size]) for i, f in enumerate(files)}


class Python2Pickler(pickle._Pickler):
    """Writes bytes, texts and flags as Python 2 and its numpy wrote them, as in the published files."""

    def save_raw(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    def save_flag(self, value):
        self.save_long(int(value))

    dispatch = {**pickle._Pickler.dispatch, bytes: save_raw, str: save_raw, bool: save_flag}  # noqa: RUF012


def dump(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def write_python(folder, data, name):
    folder.mkdir(parents=True)
    ten = name == "cifar10"
    for split in data:
        for file, (pixels, labels) in files_of(data, name, split).items():
            content = {"data": pixels, "labels" if ten else "fine_labels": labels, "batch_label": file}
            content |= {"filenames": ["a.png"] * len(labels)} | ({} if ten else {"coarse_labels": [0] * len(labels)})
            (folder / file).write_bytes(dump(content))
    key, file = ("label_names", "batches.meta") if ten else ("fine_label_names", "meta")
    (folder / file).write_bytes(dump({key: NAMES[name]}))
    (folder / "readme.html").write_text("<html>")
    return folder


@pytest.fixture
def publish(monkeypatch):
    """Writes a set and takes its files for the published ones: torchvision's MD5 lists become theirs."""

    def write(folder, name):
        write_python(folder, make(name), name)
        kind, md5 = PUBLISHED[name], {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in folder.iterdir()}
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(kind, attribute, [[file, md5[file]] for file, _ in getattr(kind, attribute)])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5[kind.meta["filename"]]})
        return folder

    return write


def write_images(folder, data, name):
    for split, (pixels, labels) in data.items():
        for i, (row, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / split / NAMES[name][label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
    return folder


def tar(folder, path):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return path


def zipped(folder, path, leading=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):  # out of order, and with entries for the folders
            archive.write(file, leading + file.relative_to(folder).as_posix())
    return path


def check(found, data, name, split):
    pixels, labels = data[split]
    order = sorted(range(len(labels)), key=lambda i: labels[i])  # stable: class by class, as in the files
    expected = torch.from_numpy(pixels[order].reshape(-1, 3, 32, 32))
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0)
    torch.testing.assert_close(found.labels, torch.tensor(labels)[order], rtol=0, atol=0)
    assert found.classes == tuple(NAMES[name]) and found.images.is_contiguous()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_all_forms_give_the_same_arrays(tmp_path, cache, publish, name):
    data = make(name)
    python = publish(tmp_path / "py" / "cifar-python", name)
    images = write_images(tmp_path / "images", data, name)
    roots = [python, images, tar(python, tmp_path / "a.tar.gz")]
    roots += [tar(images, tmp_path / "c.tgz"), zipped(images, tmp_path / "d.zip")]
    roots += [zipped(images, tmp_path / "e.zip", "CIFAR/"), zipped(python, tmp_path / "f.zip")]
    for root in roots:
        for split in ("train", "test", "test"):  # the second time from the decoded images
            check(read_cifar(str(root), split=split, name=name), data, name, split)
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {cache}  # nothing is written beside the data
    kept = sorted(re.sub(r"\.[0-9a-f]{12}\.", ".", path.name) for path in cache.glob("*.npz"))
    assert kept == sorted(f"{root}.{s}.npz" for root in ("images", "c.tgz", "d.zip", "e.zip") for s in data)


def test_one_image_by_hand(tmp_path, cache):
    # Label 1 of (a, b); three planes, each row by row: only the pixel in row 2, column 5 is not black.
    for label in ("a", "b"):
        (tmp_path / "test" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "test" / label / "1.png")
    with Image.open(tmp_path / "test" / "b" / "1.png") as image:
        image.putpixel((5, 2), (10, 20, 30))
        image.save(tmp_path / "test" / "b" / "1.png")
    data = read_cifar(tmp_path, split="test")
    assert data.labels.tolist() == [0, 1] and data.images.nonzero().tolist() == [[1, c, 2, 5] for c in range(3)]
    assert data.images[1, :, 2, 5].tolist() == [10, 20, 30]


def test_the_published_files_are_those_of_torchvision():
    rows = {"cifar10": (5, 1), "cifar100": (1, 1)}
    assert {name: (len(kind.train_list), len(kind.test_list)) for name, kind in PUBLISHED.items()} == rows
    assert dict(PUBLISHED["cifar10"].test_list) == {"test_batch": "40351d587109b95175f43aff81a1287e"}


def test_the_papers_split(monkeypatch):
    kept, held_out = split_rows()
    assert kept.shape == (45_000,) and held_out.shape == (5_000,)
    assert torch.cat([kept, held_out]).sort()[0].equal(torch.arange(50_000))
    assert held_out[:6].tolist() == [2, 3, 11, 13, 20, 48]  # so it was when published; a change would mix the two
    counts = (held_out // 5_000).bincount()  # in CIFAR-10, class by class
    assert counts.tolist() == [521, 498, 506, 475, 499, 493, 521, 486, 505, 496]

    data = ArrayData(torch.arange(50_000).view(-1, 1, 1, 1), torch.arange(50_000) // 5_000, ("a",) * 10, "x")
    monkeypatch.setattr(cifar, "_read", lambda root, split, name: data)
    for split, rows in (("train45k", kept), ("val5k", held_out)):
        part = read_cifar(".", split=split)
        assert part.images.flatten().equal(rows) and part.labels.equal(rows // 5_000)
        assert part.source == f"., {split}" and len(part) == len(rows)


# ------------------------------------------------------------------------------------------------------ decoded images


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", make("cifar10"), "cifar10")


def test_decoded_images_are_kept_until_the_source_changes(images, cache, monkeypatch):
    archive = zipped(images, images.parent / "c.zip")
    one_file = next((images / "test" / "class3").iterdir())
    for root, inside in ((archive, archive), (images, one_file)):
        first = read_cifar(root, split="train")
        with monkeypatch.context() as patch:
            patch.setattr(cifar, "_read", None)  # reading anew would be a TypeError
            second = read_cifar(f"{root}{os.sep * root.is_dir()}", split="train")
            assert second.images.equal(first.images) and second.labels.equal(first.labels)
            assert second.classes == first.classes and second.source == f"{root}{os.sep * root.is_dir()}, train"
            os.utime(inside, ns=(1, 1))
            if root == archive:  # whose content counts, and not its time
                assert read_cifar(root, split="train").images.equal(first.images)
                with open(archive, "ab") as file:
                    file.write(b"x")
            with pytest.raises(TypeError):
                read_cifar(root, split="train")
        assert read_cifar(root, split="train").images.equal(first.images)
    assert len(list(cache.glob("*.train.npz"))) == 2


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\3\4 and then no more"])
def test_a_broken_cache_is_written_anew(cache, images, junk):
    kept = kept_path(images, "test")
    kept.parent.mkdir()
    kept.write_bytes(junk)
    check(read_cifar(images, split="test"), make("cifar10"), "cifar10", "test")
    assert kept.stat().st_size > 20 * 3072


def test_without_space_nothing_is_kept(cache, images, monkeypatch):
    def full(file, **arrays):
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resdet.files.np.savez", full)
    check(read_cifar(images, split="test"), make("cifar10"), "cifar10", "test")
    assert not list(images.parent.rglob("*.npz*"))


# ------------------------------------------------------------------------------------------------------ refusals


def refused(root, *parts, split="train", name="cifar10"):
    with pytest.raises(InputError) as caught:
        read_cifar(root, split=split, name=name)
    text = str(caught.value)
    assert len(text.splitlines()) == 3
    for part in parts:
        assert part in text, text


def test_unknown_names(tmp_path):
    refused(tmp_path, "'cifra10'", "did you mean 'cifar10'", name="cifra10")
    refused(tmp_path, "'tset'", "did you mean 'test'", split="tset")
    refused(tmp_path / "c.zip", "c.zip", "no such file or folder", "cifar-10-python.tar.gz")


def test_places_that_are_no_cifar(tmp_path):
    refused(tmp_path, "no train/<class>/, but nothing", "train/<class>/*.png")
    (tmp_path / "page.tar.gz").write_text("<html>not found</html>")
    refused(tmp_path / "page.tar.gz", "page.tar.gz", "damaged, or no archive (ReadError")
    refused(tmp_path, "no train/<class>/, but page.tar.gz")


def test_cut_and_altered_archives(tmp_path, publish):
    whole = tar(publish(tmp_path / "cifar-10-batches-py", "cifar10"), tmp_path / "c.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.tar.gz", "cut.tar.gz", "damaged, or no archive")
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0xFF
    (tmp_path / "altered.tar.gz").write_bytes(altered)
    with pytest.raises(InputError):
        read_cifar(tmp_path / "altered.tar.gz", split="train")

    whole = zipped(write_images(tmp_path / "images", make("cifar10"), "cifar10"), tmp_path / "d.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.zip", "cut.zip", "damaged, or no archive")
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0xFF
    (tmp_path / "altered.zip").write_bytes(altered)
    refused(tmp_path / "altered.zip", "altered.zip", "BadZipFile: Bad CRC-32")


@pytest.fixture
def python(tmp_path, publish):
    return publish(tmp_path / "py", "cifar10")


def test_another_set(python):
    refused(python, "the files of cifar10", "those of cifar100", name="cifar100")


def test_missing_batches(python):
    (python / "data_batch_3").unlink()
    refused(python, "no file data_batch_3", "data_batch_1, data_batch_2")
    check(read_cifar(python, split="test"), make("cifar10"), "cifar10", "test")
    (python / "batches.meta").unlink()
    refused(python, "no file batches.meta", split="test")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_files_that_are_not_as_published_are_not_unpickled(python, monkeypatch):
    monkeypatch.chdir(python)
    whole = (python / "test_batch").read_bytes()
    published = hashlib.md5(whole).hexdigest()
    for content in (whole[:-50], whole[:100] + b"?" + whole[101:], b"", pickle.dumps(Hostile())):
        (python / "test_batch").write_bytes(content)
        other = hashlib.md5(content).hexdigest()
        found, needed = f"a damaged or altered file, MD5 {other}", f"the published file, MD5 {published}"
        refused(python, f"{python}: test_batch", found, needed, split="test")
        check(read_cifar(python, split="train"), make("cifar10"), "cifar10", "train")
    (python / "batches.meta").write_bytes(pickle.dumps(Hostile()))
    refused(python, f"{python}: batches.meta", "MD5")
    assert not (python / "hostile").exists()


def test_the_binary_version_is_told_which_to_take(tmp_path):
    for file in ("batches.meta.txt", "test_batch.bin"):
        (tmp_path / file).write_bytes(bytes(3073))
    found = "no test/<class>/, but batches.meta.txt, test_batch.bin"
    refused(tmp_path, found, "cifar-10-python.tar.gz", split="test")


def test_images_of_wrong_content(cache, images):
    path = images / "test" / "class2" / "zzz.png"
    name = "images: test/class2/zzz.png"
    for size, mode, found in (((33, 32), "RGB", "33 x 32 pixels, RGB"), ((32, 32), "L", "32 x 32 pixels, L")):
        Image.new(mode, size).save(path)
        refused(images, name, found, "32 x 32 RGB", split="test")
    path.write_bytes(path.read_bytes()[:40])
    refused(images, name, "does not decode (40 bytes; ", split="test")
    path.write_bytes(b"")
    refused(images, name, "does not decode (0 bytes; ", split="test")
    path.unlink()
    assert not list(cache.rglob("*.npz"))


def test_other_files_are_passed_over(images):
    (images / "test" / "class2" / "notes.txt").write_text("no image")
    (images / "test" / "class2" / "._00001.png").write_text("what macOS leaves")
    (images / "test" / "readme").write_text("beside the classes")
    (images / "other").mkdir()
    check(read_cifar(images, split="test"), make("cifar10"), "cifar10", "test")


def test_classes_of_folders(images):
    (images / "test" / "class9").rename(images / "test" / "extra")
    refused(images, "only in train: class9; only in test: extra", "the same class folders", split="test")
    (images / "test" / "extra").rename(images / "test" / "class9")
    for file in (images / "test" / "class9").iterdir():
        file.rename(file.with_suffix(".txt"))
    empty = "1 of 10 class folders without an image: class9"
    refused(images, "images: test", empty, split="test")
    for file in (images / "test" / "class9").iterdir():
        file.unlink()
    refused(images, empty, split="test")
    refused(zipped(images, images.parent / "c.zip"), empty, split="test")
    assert len(read_cifar(images, split="train")) == 100
    refused(images, "100 images in train", "50,000", split="val5k")


def test_only_one_split(images):
    os.rename(images / "test", images.parent / "test")
    archive = zipped(images, images.parent / "c.zip")  # everything lies below train/, which is no leading folder
    for root in (images, archive):
        check(read_cifar(root, split="train"), make("cifar10"), "cifar10", "train")
        refused(root, "no test/<class>/, but train", split="test")
