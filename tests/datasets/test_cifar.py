from __future__ import annotations

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
from resdet.datasets.cifar import ArrayData, read_cifar, split_rows
from resdet.errors import InputError
from resdet.files import kept_path

NAMES = {"cifar10": [f"class{i}" for i in range(10)], "cifar100": [f"class{i:02}" for i in range(100)]}
FEWER = {"cifar10": 500, "cifar100": 100}
"""By how much the sets made here are smaller than the published ones."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """CIFAR-10 with 100 + 20 images (20 a file), CIFAR-100 with 500 + 100."""

    def fewer(form):
        rows = {s: {f: n // FEWER[form.name] for f, n in files.items()} for s, files in form.rows.items()}
        return form._replace(rows=rows)

    monkeypatch.setattr(cifar, "ORIGINALS", tuple(map(fewer, cifar.ORIGINALS)))


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
    """Writes bytes and texts as Python 2 wrote its str, as in the published files."""

    def save_raw(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_raw, str: save_raw}  # noqa: RUF012


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


def write_binary(folder, data, name):
    folder.mkdir(parents=True)
    for split in data:
        for file, (pixels, labels) in files_of(data, name, split).items():
            columns = [np.array(labels, np.uint8)[:, None], pixels]
            columns = columns if name == "cifar10" else [np.full((len(labels), 1), 7, np.uint8), *columns]
            (folder / f"{file}.bin").write_bytes(np.hstack(columns).tobytes())
    meta = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / meta).write_text("\n".join([*NAMES[name], "", ""]))  # the published one ends in empty lines
    return folder


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
def test_all_forms_give_the_same_arrays(tmp_path, cache, name):
    data = make(name)
    python = write_python(tmp_path / "py" / "cifar-python", data, name)
    binary = write_binary(tmp_path / "bin" / "cifar-binary", data, name)
    images = write_images(tmp_path / "images", data, name)
    roots = [python, binary, images, tar(python, tmp_path / "a.tar.gz"), tar(binary, tmp_path / "b.tar.gz")]
    roots += [tar(images, tmp_path / "c.tgz"), zipped(images, tmp_path / "d.zip")]
    roots += [zipped(images, tmp_path / "e.zip", "CIFAR/"), zipped(python, tmp_path / "f.zip")]
    for root in roots:
        for split in ("train", "test", "test"):  # the second time from the decoded images
            check(read_cifar(str(root), split=split, name=name), data, name, split)
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {cache}  # nothing is written beside the data
    kept = sorted(re.sub(r"\.[0-9a-f]{12}\.", ".", path.name) for path in cache.glob("*.npz"))
    assert kept == sorted(f"{root}.{s}.npz" for root in ("images", "c.tgz", "d.zip", "e.zip") for s in data)


def test_one_row_by_hand(tmp_path, monkeypatch):
    form = cifar.ORIGINALS[2]._replace(rows={"train": {}, "test": {"test_batch.bin": 1}})
    monkeypatch.setattr(cifar, "ORIGINALS", (form,))
    # Label 3; a plane of red, of green, of blue, each row by row: only the pixel in row 2, column 5 is not black.
    planes = [bytearray(1024) for _ in range(3)]
    for plane, value in zip(planes, (10, 20, 30), strict=True):
        plane[2 * 32 + 5] = value
    (tmp_path / "test_batch.bin").write_bytes(b"\3" + b"".join(planes))
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES["cifar10"]))
    data = read_cifar(tmp_path, split="test")
    assert data.labels.tolist() == [3] and data.images.nonzero().tolist() == [[0, c, 2, 5] for c in range(3)]
    assert data.images[0, :, 2, 5].tolist() == [10, 20, 30]


def test_published_sizes(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES["cifar10"]))
    (tmp_path / "test_batch.bin").write_bytes(bytes(10_000 * 3_073))
    assert read_cifar(tmp_path, split="test").images.shape == (10_000, 3, 32, 32)
    (tmp_path / "test_batch.bin").write_bytes(bytes(10_000 * 3_073 - 1))
    refused(tmp_path, "test_batch.bin", "30,729,999 bytes", "10,000 rows of 3,073 bytes = 30,730,000", split="test")
    assert [sum(form.rows["train"].values()) for form in cifar.ORIGINALS] == [50_000] * 4


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


def test_cut_and_altered_archives(tmp_path):
    data = make("cifar10")
    whole = tar(write_python(tmp_path / "cifar-10-batches-py", data, "cifar10"), tmp_path / "c.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.tar.gz", "cut.tar.gz", "damaged, or no archive")
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0xFF
    (tmp_path / "altered.tar.gz").write_bytes(altered)
    with pytest.raises(InputError):
        read_cifar(tmp_path / "altered.tar.gz", split="train")

    whole = zipped(write_images(tmp_path / "images", data, "cifar10"), tmp_path / "d.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.zip", "cut.zip", "damaged, or no archive")
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0xFF
    (tmp_path / "altered.zip").write_bytes(altered)
    refused(tmp_path / "altered.zip", "altered.zip", "BadZipFile: Bad CRC-32")


@pytest.fixture
def python(tmp_path):
    return write_python(tmp_path / "py", make("cifar10"), "cifar10")


def test_another_set(python):
    refused(python, "the files of cifar10", "those of cifar100", name="cifar100")


def test_missing_batches(python):
    (python / "data_batch_3").unlink()
    refused(python, "no file data_batch_3", "data_batch_1, data_batch_2")
    check(read_cifar(python, split="test"), make("cifar10"), "cifar10", "test")
    (python / "batches.meta").unlink()
    refused(python, "no file batches.meta", split="test")


def alter(file, **changes):
    content = pickle.loads(file.read_bytes(), encoding="latin1")
    file.write_bytes(dump({k: v for k, v in (content | changes).items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "found", "needed"),
    [
        ({"data": np.zeros((19, 3072), np.uint8)}, "data: uint8 of shape (19, 3072)", "uint8 of shape (20, 3072)"),
        ({"data": np.zeros((20, 3071), np.uint8)}, "shape (20, 3071)", "(20, 3072)"),
        ({"data": np.zeros((20, 3072), np.float32)}, "data: float32", "uint8"),
        ({"data": "text"}, "data: str", "uint8"),
        ({"data": None}, "keys labels, batch_label, filenames", "a pickled dict with data and labels"),
        ({"labels": [0] * 19}, "labels: list of 19", "20 whole numbers"),
        ({"labels": ["0"] * 20}, "labels: list of 20", "20 whole numbers"),
        ({"labels": {}}, "labels: dict", "20 whole numbers"),
        ({"labels": [0] * 19 + [10]}, "label 10", "labels from 0 to 9"),
        ({"labels": [-1] + [0] * 19}, "label -1", "labels from 0 to 9"),
    ],
)
def test_batches_of_wrong_content(python, changes, found, needed):
    alter(python / "data_batch_2", **changes)
    refused(python, f"{python}: data_batch_2", found, needed)


def test_class_names_of_wrong_content(python):
    alter(python / "batches.meta", label_names=["a"] * 9)
    refused(python, "batches.meta", "9 class names", "10")
    alter(python / "batches.meta", label_names=7)
    refused(python, "batches.meta", "0 class names")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_pickles_that_are_damaged_or_hostile(python, monkeypatch):
    monkeypatch.chdir(python)
    whole = (python / "test_batch").read_bytes()
    for content, found in ((whole[:-50], "damaged, or no pickle"), (dump([1]), "list"), (b"", "EOFError")):
        (python / "test_batch").write_bytes(content)
        refused(python, "test_batch", found, "a pickled dict with data and labels, as published", split="test")
    (python / "test_batch").write_bytes(pickle.dumps({"data": Hostile(), "labels": []}))
    refused(python, "test_batch", "posix.mkdir" if os.name == "posix" else "mkdir", split="test")
    assert not (python / "hostile").exists()


def test_labels_out_of_range_in_bytes(tmp_path):
    root = write_binary(tmp_path / "bin", make("cifar10"), "cifar10")
    content = bytearray((root / "test_batch.bin").read_bytes())
    content[3073] = 200
    (root / "test_batch.bin").write_bytes(content)
    refused(root, "test_batch.bin", "label 200", "labels from 0 to 9", split="test")


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
