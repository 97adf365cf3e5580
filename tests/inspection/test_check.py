"""The doctor and the contact sheets, on a set with one fault of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdet import cli
from resdet.datasets.by_folder import read_folder
from resdet.datasets.coco import read_coco
from resdet.engine.config import load_config
from resdet.inspection.browse import chosen_rows, write_sheets
from resdet.inspection.check import check, repair, table


def noise(seed: int, hw=(60, 80)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*hw, 3), dtype=np.uint8))


def write(root, split, files, annotations, categories) -> None:
    images = [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(files, 1)]
    rows = [
        {"id": n, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
        for n, (image, label, box) in enumerate(annotations, 1)
    ]
    content = {"images": images, "annotations": rows, "categories": [{"id": k, "name": n} for k, n in categories]}
    (root / f"{split}.json").write_text(json.dumps(content))


def found_by_folder(root):
    """Names of the images of both splits, all of which are there."""
    splits = [read_folder(root, split) for split in ("train", "val")]
    assert all(Path(data.path(row)).is_file() for data in splits for row in range(len(data)))
    return [list(data.files) for data in splits]


@pytest.fixture
def faulty(tmp_path):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for seed, name in enumerate("abcdef"):
        noise(seed).save(root / "images" / f"{name}.png")
    noise(0).save(root / "images" / "copy of a.png")  # in the same split
    noise(1).save(root / "images" / "b again.png")  # in the other one
    (root / "images" / "f.png").write_bytes((root / "images" / "f.png").read_bytes()[:200])
    noise(9, (80, 60)).save(root / "images" / "tall.png")
    noise(9, (30, 30)).save(root / "images" / "other.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(8, (80, 60)).save(root / "images" / "turned.jpg", exif=turned)
    box = [10, 10, 30, 20]
    train = [
        (1, 1, box),
        (1, 1, box),
        (2, 1, [5, 5, 0, 10]),
        (2, 2, [70, 50, 30, 30]),
        (3, 1, [1, 1, 1, 1]),
        (4, 2, box),
    ]
    names = ["a.png", "copy of a.png", "b.png", "c.png", "f.png", "other.png", "turned.jpg"]
    write(root, "train", names, train, [(1, "cat"), (2, "Cat "), (3, "dog")])
    write(root, "val", ["d.png", "b again.png"], [(1, 1, box)], [(1, "cat"), (2, "Cat "), (3, "dog")])
    return root


def test_each_fault_is_found(faulty):
    findings, splits = check(cli_config(faulty))
    found = {(f.split, f.what.partition(" (")[0]): f for f in findings}
    assert found["train", "images that do not decode"].examples[0].startswith("f.png: ")
    assert found["train", "images of another size than annotated"].examples == [
        "other.png: (30, 30), annotated (60, 80)"
    ]
    assert found["train", "images turned by EXIF"].examples == ["turned.jpg"]
    assert found["train", "images that are there twice, by content"].examples == ["a.png = copy of a.png"]
    assert found["train, val", "images in both splits, by content"].examples == ["b.png = b again.png"]
    assert found["train", "boxes that are there twice"].count == 1
    assert found["train", "classes without a box"].examples == ["dog"]
    assert found["train", "names that differ by case or blanks"].examples == ["'cat', 'Cat '"]
    assert any("boxes at fault" in f.what for f in findings if f.split == "train")
    assert [f.severity for f in findings] == sorted(
        (f.severity for f in findings), key=["error", "warning", "note"].index
    )
    assert set(splits) == {"train", "val"} and "errors" in table(findings)


def cli_config(root):
    from resdet.cli.data import config_of

    return config_of(None, str(root))


def test_the_tool_and_its_repairs(faulty, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.check_data(["--data", str(faulty), "--json", str(tmp_path / "c.json"), "--fix", str(tmp_path / "fixed")])
    assert "kinds of errors" in str(caught.value.code)
    told = capsys.readouterr().out
    assert "ERROR    train: 1 images that do not decode" in told and "images that do not decode and" in told
    assert {row["severity"] for row in json.loads((tmp_path / "c.json").read_text())} == {"error", "warning", "note"}
    mended = read_coco(tmp_path / "fixed" / "train.json", faulty / "images", strict=True)
    assert list(mended.files) == ["a.png", "c.png", "turned.jpg"]  # b is in val, other.png of another size
    assert len(mended.boxes) == 2  # of six: one twice, two of images left out, one without width
    assert list(read_coco(tmp_path / "fixed" / "val.json", faulty / "images", strict=True).files) == [
        "d.png",
        "b again.png",
    ]
    assert "train: 1 images that another split has too left out" in told
    assert "train: 1 images of another size than annotated left out" in told
    assert found_by_folder(tmp_path / "fixed") == [["a.png", "c.png", "turned.jpg"], ["d.png", "b again.png"]]


@pytest.mark.parametrize("apart", [False, True])
def test_a_repaired_set_is_found_with_its_images(tmp_path, apart):
    roots = {"train": tmp_path / "a", "val": tmp_path / ("b" if apart else "a")}
    splits = {}
    for seed, (split, root) in enumerate(roots.items()):
        root.mkdir(exist_ok=True)
        noise(seed).save(root / f"{split}.png")
        write(root, split, [f"{split}.png"], [(1, 1, [10, 10, 30, 30])], [(1, "cat")])
        splits[split] = read_coco(root / f"{split}.json", root)
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "images").symlink_to(roots["train"])  # of an earlier call
    for _ in range(2):  # again over its own links
        lines = []
        repair(splits, tmp_path / "fixed", lines.append)
        assert lines[-1] == f"next: --data {tmp_path / 'fixed'}"
        assert found_by_folder(tmp_path / "fixed") == [["train.png"], ["val.png"]]
        assert not [path for root in roots.values() for path in root.iterdir() if path.is_symlink()]
    repair(splits, roots["train"], lines.append)  # into the folder of the images itself
    assert apart or not (roots["train"] / "images").exists()


def test_a_sound_set(tmp_path, capsys):
    root = tmp_path / "sound"
    (root / "images").mkdir(parents=True)
    for split, seed in (("train", 1), ("val", 2)):
        noise(seed).save(root / "images" / f"{split}.png")
        write(root, split, [f"{split}.png"], [(1, 1, [10, 10, 30, 30])], [(1, "cat")])
    cli.check_data(["--data", str(root)])
    assert "nothing to find fault with" in capsys.readouterr().out


def test_what_cannot_be_read_is_an_error(det_config, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    findings, splits = check(load_config(det_config, [f"test_data.annotation_file={broken}"]))
    assert (findings[0].severity, findings[0].split) == ("error", "val") and "broken JSON" in findings[0].what
    assert set(splits) == {"train"}


def test_sheets(tmp_path, det_config):
    config = load_config(det_config)
    path = write_sheets(config, split="train", out=tmp_path / "sheet.png", count=5, seed=1)
    sheet = Image.open(path)
    assert sheet.size == (4 * 480, 2 * 480)
    again = Image.open(write_sheets(config, split="train", out=tmp_path / "again.png", count=5, seed=1))
    assert np.array_equal(np.asarray(sheet), np.asarray(again))
    data = config.task.test_data(config)
    red = chosen_rows(data, count=99, classes=("red",))
    known = data.annotations
    label = known.classes.index("red")
    assert sorted(red) == [row for row in range(len(known)) if label in known.labels[known.rows(row)]]
    assert chosen_rows(data, count=2, seed=3) == chosen_rows(data, count=2, seed=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--classes", "rod"], "did you mean 'red'"), (["--size", "large"], "no image with such objects")],
)
def test_sheets_of_nothing(det_config, tmp_path, words, message):
    with pytest.raises(SystemExit) as caught:
        cli.browse([str(det_config), *words, "--out", str(tmp_path / "s.png")])
    assert message in str(caught.value.code)
    with pytest.raises(SystemExit, match="2"):
        cli.browse([])


def test_missing_pictures_and_those_without_a_header_are_listed(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for seed, name in enumerate("abcd"):
        noise(seed).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25")
    (tmp_path / "classes.txt").write_text("cat")
    (tmp_path / "images" / "a.png").write_bytes(b"none")
    reader = {"type": "resdet.datasets.by_folder.read_folder", "_delete_": True, "folder": str(tmp_path)}
    overrides = {"train_data": {**reader, "split": "train"}, "test_data": {**reader, "split": "val"}}
    config = load_config("frcnn_r18_fpn_own", overrides=overrides)
    found = [finding for finding in check(config)[0] if finding.what == "images that do not decode"]
    assert [finding.count for finding in found] == [1] and found[0].examples[0].startswith("a.png: does not")
