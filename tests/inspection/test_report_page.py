"""The report as a whole: inputs, record, page."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resdet import cli
from resdet.errors import InputError
from resdet.evaluation.coco import evaluate_coco
from resdet.inspection import page as module
from resdet.inspection.inputs import open_data, open_detections
from resdet.inspection.page import write_report


class Page(HTMLParser):
    """Rows of each table (cells as they are meant: ``data-value`` where there is one), figures, images, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables, self.figures, self.sources, self.rows, self.cell = {}, {}, [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "table":
            self.rows = self.tables.setdefault(values.get("id"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(values.get("data-value", ""))
            self.cell = None if "data-value" in values else len(self.rows[-1]) - 1
        elif "data-figure" in values:
            self.figures.setdefault(values["data-figure"], []).append(values["data-value"])
        self.sources += [values[key] for key in ("src", "href") if key in values]

    def handle_data(self, data):
        if self.cell is not None and self.rows and self.rows[-1]:
            self.rows[-1][self.cell] += data.strip()

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None


def texts(*values):
    return ["" if value is None else str(value) for value in values]


@pytest.fixture(scope="module")
def compared(tiny, made_results, tmp_path_factory):
    """Record, page and JSON of two results."""
    folder = tmp_path_factory.mktemp("report")
    out, json_file = folder / "r.html", folder / "r.json"
    flags = {"images": tiny.images, "worst": 3, "resamples": 60, "seed": 1, "out": out, "json": json_file}
    cli.report([*map(str, (tiny.val, *made_results)), *(f"--{name}={value}" for name, value in flags.items())])
    record = write_report(tiny.val, made_results, out=out, images=tiny.images, worst=3, bootstrap=(60, 1))
    return record, out.read_text(), json.loads(json_file.read_text())


def test_the_numbers_of_the_page_are_those_of_the_json(compared):
    record, html, written = compared
    assert record | {"date": ""} == written | {"date": ""}
    page = Page(html)
    for number, part in enumerate(written["detectors"], 1):
        for name, value in part["figures"].items():
            assert page.figures[name][number - 1] == texts(value)[0]
        assert page.figures["ece"][number - 1] == str(part["calibration"]["ece"])
        names = ("class", "objects", "AP", "AP50", "AP75", "threshold", "precision", "recall", "f1")
        for shown, row in zip(page.tables[f"d{number}-classes"][1:], part["classes"], strict=True):
            assert shown == [*texts(*(row[name] for name in names)), row["costliest_error"] or "\N{EN DASH}"]
        for shown, (kind, cost) in zip(
            page.tables[f"d{number}-errors"][1:], part["errors"]["costs"].items(), strict=True
        ):
            assert shown[:3] == texts(kind, part["errors"]["counts"].get(kind), cost)
        for shown, row in zip(page.tables[f"d{number}-slices"][1:], part["slices"], strict=True):
            assert shown == texts(row["part"], row["objects"], row["AP"], row["AP50"], row["recall"])
    names = ("class", "images", "first", "second", "difference", "low", "high", "verdict")
    for shown, row in zip(page.tables["comparison-classes"][1:], written["comparison"]["classes"], strict=True):
        assert shown == texts(*(row[name] for name in names))
    gap = written["comparison"]["AP"]
    assert page.tables["comparison-figures"][1] == texts("AP", *gap.values())


def test_the_figures_are_COCOs(compared, tiny, made_results):
    data = open_data(tiny.val)
    for path, part in zip(made_results, compared[0]["detectors"], strict=True):
        figures = evaluate_coco(data.truth, open_detections(path, data))
        assert part["name"] == path.stem
        assert part["figures"]["AP"] == figures.AP
        assert part["figures"]["APl"] is None  # no object is large
        assert [row["AP"] for row in part["classes"]] == pytest.approx([row.AP for row in figures.per_class])


def test_the_least_certain_images_in_order(compared, made_results):
    record, html, _ = compared
    rows = record["detectors"][0]["uncertain_images"]
    found = [row for row in json.loads(made_results[0].read_text()) if row["score"] > 0.1]
    by_hand = {}
    for row in found:
        by_hand.setdefault(row["image_id"], []).append(1 - abs(2 * row["score"] - 1))
    order = sorted(by_hand, key=lambda image: -np.mean(by_hand[image]))
    assert [row["image"] for row in rows] == order[:3]
    assert [row["margin"] for row in rows] == pytest.approx([np.mean(by_hand[image]) for image in order[:3]])
    assert Page(html).tables["d1-uncertain"][1:] == [
        [Path(row["file"]).name, *texts(row["margin"], row["mistakes"])] for row in rows
    ]
    sure = record["detectors"][1]["uncertain_images"]
    assert [row["margin"] for row in sure] == pytest.approx([0.2] * 3)  # all of its scores are 0.9


def test_the_images_are_the_worst_and_the_most_changed(compared):
    poor, sound = compared[0]["detectors"]
    assert len(poor["worst_images"]) == 3
    counts = [row["mistakes"] for row in poor["worst_images"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(poor["worst_images"][0]["wrong"]) + len(poor["worst_images"][0]["missed"])
    (worst,) = sound["worst_images"]
    assert (worst["mistakes"], len(worst["missed"]), worst["wrong"]) == (1, 1, [])
    changed = compared[0]["comparison"]["changed_images"]
    assert all(row["change"] == row["second_mistakes"] - row["first_mistakes"] for row in changed)
    assert [abs(row["change"]) for row in changed] == sorted((abs(row["change"]) for row in changed), reverse=True)


def test_the_page_needs_nothing_else(compared):
    page = Page(compared[1])
    pictures = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 2 * (3 + 1) + 3 * len(compared[0]["comparison"]["changed_images"])
    assert {source[:5] for source in page.sources} - {"data:"} <= {"#comp", "#d1", "#d2"}
    assert "http://" not in compared[1] and "https://" not in compared[1]


def test_what_a_user_names_is_escaped(tiny, made_results, tmp_path):
    content = json.loads(tiny.val.read_text())
    content["categories"][0]["name"] = "<script>blue</script>"
    (tmp_path / "val.json").write_text(json.dumps(content))
    write_report(tmp_path / "val.json", made_results[:1], out=tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script>blue" not in html
    assert "&lt;script&gt;blue" in html
    assert "Without a folder of images" in html


def test_a_class_without_objects(tiny, made_results, tmp_path, compared):
    content = json.loads(tiny.val.read_text())
    content["categories"].append({"id": 77, "name": "none"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    record = write_report(tmp_path / "val.json", made_results[:1], out=tmp_path / "r.html")
    part = record["detectors"][0]
    assert part["classes"][-1] == {"class": "none", "objects": 0} | dict.fromkeys(list(part["classes"][-1])[2:])
    for name in ("figures", "curves", "errors"):
        assert part[name] == compared[0]["detectors"][0][name]


def test_images_in_another_order(tiny, write_config, tmp_path):
    content = json.loads(tiny.val.read_text())
    content["images"].reverse()
    (tmp_path / "val.json").write_text(json.dumps(content))
    changed = write_config((str(tiny.val), str(tmp_path / "val.json")))
    for data in (open_data(tmp_path / "val.json", images=tiny.images), open_data(changed)):
        names = {row["id"]: row["file_name"] for row in content["images"]}
        assert [Path(file).name for file in data.files] == [names[key] for key in data.truth.image_ids]


def test_a_picture():
    image = torch.full((3, 600, 600), 255, dtype=torch.uint8)
    box = np.array([[100.0, 300, 200, 150]])
    uri = module._drawn(image, box, np.array([0]), np.array([0.5]), ["dog"])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    dark = np.argwhere(pixels.min(2) < 128)  # rows and columns of the frame, and of the label above it
    assert dark.max(0) == pytest.approx([450, 300], abs=6)
    assert dark.min(0)[1] == pytest.approx(100, abs=6)


def test_no_detections(tiny, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    record = write_report(tiny.val, [tmp_path / "none.json"], out=tmp_path / "r.html", images=tiny.images)
    (part,) = record["detectors"]
    assert part["figures"]["AP"] == 0
    assert part["calibration"]["ece"] is None
    assert {row["detected"] for row in part["confusion"]} == {"(missed)"}


def test_a_run_is_asked(trained, made_results, tmp_path, capsys):
    cli.report([str(trained), str(made_results[1]), "--out", str(tmp_path / "r.html"), "--worst", "1"])
    assert capsys.readouterr().out == f"{tmp_path / 'r.html'}\n"
    figure = json.loads((trained / "metrics.json").read_text())["figures"]["coco/AP"]
    page = Page((tmp_path / "r.html").read_text())
    assert float(page.figures["AP"][0]) == pytest.approx(figure, abs=1e-6)


def test_a_config_tells_the_data(det_config, cls_config, made_results, tmp_path):
    assert len(open_data(det_config).files) == 5
    with pytest.raises(InputError, match="a detection config"):
        open_data(cls_config)
    with pytest.raises(InputError, match="which tells its images"):
        open_data(det_config, images=tmp_path)
    record = write_report(det_config, made_results[:1], out=tmp_path / "r.html", worst=0)
    assert record["config"]["path"] == str(det_config)
    assert record["detectors"][0]["worst_images"] == []


def test_what_does_not_fit_is_told(tiny, trained, made_results, tmp_path):
    with pytest.raises(InputError, match="0 detectors"):
        write_report(tiny.val, out=tmp_path / "r.html")
    with pytest.raises(InputError, match="3 detectors"):
        write_report(trained, made_results, out=tmp_path / "r.html")
    with pytest.raises(InputError, match="no config"):
        open_data(tmp_path)
    (tmp_path / "a.py").touch()
    with pytest.raises(InputError, match="task"):
        open_data(tmp_path)
    (tmp_path / "b.py").touch()
    with pytest.raises(InputError, match=r"a\.py, b\.py"):
        open_data(tmp_path)


def test_a_run_without_a_checkpoint(det_config, tmp_path):
    (tmp_path / "tiny.py").write_text(det_config.read_text())
    with pytest.raises(InputError, match=r"neither best\.pth nor last\.pth"):
        open_detections(tmp_path, open_data(det_config))


def test_results_of_one_name(tiny, made_results, tmp_path):
    for folder, path in zip(("a", "b"), made_results, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "found.json").write_text(path.read_text())
    sources = [tmp_path / folder / "found.json" for folder in "ab"]
    record = write_report(tiny.val, sources, out=tmp_path / "r.html", bootstrap=(5, 0))
    assert list(record["results"]) == ["a/found", "b/found"]
    record = write_report(tiny.val, sources[:1] * 2, out=tmp_path / "r.html", bootstrap=(5, 0))
    assert list(record["results"]) == ["a/found (1)", "a/found (2)"]
    assert record["comparison"]["AP"]["difference"] == 0


def test_flags(tiny, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.report([str(tiny.val), "x.json", "--worst", "-1"])
    assert "--worst: -1: at least 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"error: .*x\.json"):
        cli.report([str(tiny.val), "x.json"])
