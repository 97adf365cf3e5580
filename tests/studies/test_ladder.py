from __future__ import annotations

import json
import math

import pytest
import torch

from resdet import cli
from resdet.engine.checkpoints import read_checkpoint, write_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import build_net, load_experiment
from resdet.engine.tasks.detection import DetectionAdapter
from resdet.errors import InputError
from resdet.inference import view
from resdet.studies.ladder import RUNGS, Row, as_markdown, climb, left_out


@pytest.fixture(scope="module")
def nets(det_config, trained, tmp_path_factory):
    """The trained net, and one with context: its weights, where they fit, and random ones for the rest."""
    folder = tmp_path_factory.mktemp("nets")
    config = load_config(det_config, ["model.context=True", "model.score_threshold=0.01"])
    torch.manual_seed(0)
    net = build_net(config, num_classes=3, load_init=False)
    known = read_checkpoint(trained / "last.pth")
    own = DetectionAdapter(net).state_dict()
    state = {k: v if v.shape == own[k].shape else own[k] for k, v in known["state_dict"].items()}
    meta = {**known["meta"], "model": config.describe_model()}
    write_checkpoint(
        folder / "context.pth", {"meta": {**meta, "model": {**meta["model"], "num_classes": 3}}, "state_dict": state}
    )
    return str(trained / "last.pth"), str(folder / "context.pth")


def test_each_row_is_what_eval_gives(det_config, write_config, nets):
    plain, context = nets
    rows = climb(load_config(det_config), [plain], context=[context], ensemble=[context, plain], scales=(48, 64))
    assert [row.name for row in rows] == [*(rung.name for rung in RUNGS[:4]), "ensemble of 2 (paper: test-dev)"]
    refined = ["test.refine=1", "test.vote=0.5", "test.nms_iou=0.3"]
    pyramid = [*refined, "test.scales=(48,64)"]
    wider = ["model.context=True", "model.score_threshold=0.01"]
    alone = [
        (plain, []),
        (plain, refined),
        (context, [*wider, *refined]),
        (context, [*wider, *pyramid]),
        (context, [*wider, *pyramid, f"test.ensemble=({plain!r},)"]),
    ]
    for row, (checkpoint, options) in zip(rows, alone, strict=True):
        figures = evaluate(load_experiment(load_config(det_config, options), checkpoint))
        assert {f"coco/{k}": v for k, v in row.runs[0].items() if not k.startswith("class/")} == figures, row.name


def test_tiles_are_a_last_row_that_the_paper_has_not(det_config, nets):
    plain, _ = nets
    asked = load_config(det_config, ["test.tiles=64"])
    rows = climb(asked, [plain], ensemble=[plain, plain], scales=(48,))
    assert [row.name for row in rows][-2:] == ["ensemble of 2 (paper: test-dev)", "+ tiles of 64 px"]
    pyramid = ["test.refine=1", "test.vote=0.5", "test.nms_iou=0.3", "test.scales=(48,)"]
    pair = [*pyramid, f"test.ensemble=({plain!r},)"]
    for row, options in ((rows[0], []), (rows[-2], pair), (rows[-1], [*pair, "test.tiles=64"])):
        figures = evaluate(load_experiment(load_config(det_config, options), plain))
        assert {f"coco/{k}": v for k, v in row.runs[0].items() if not k.startswith("class/")} == figures, row.name
    assert rows[-1].runs != rows[-2].runs  # some of the images are larger than a tile
    cells = [cell.strip() for cell in as_markdown(rows).splitlines()[-1].strip("|").split("|")]
    gain = rows[-1].mean("AP") - rows[-2].mean("AP")
    assert cells[0] == "+ tiles of 64 px" and cells[1] == cells[3] == "" and cells[4] == f"{gain:+.1f}"
    assert cells[5] == f"{rows[-1].mean('AP50'):.1f}"


def test_shared_work_is_done_once_and_charged_to_each_row(det_config, nets, monkeypatch):
    plain, context = nets
    seen = []

    class Counted(view.View):
        def __init__(self, net, images, shorter_side=None, *, wait=False):
            seen.append((id(net), shorter_side, len(images)))
            super().__init__(net, images, shorter_side, wait=wait)

    monkeypatch.setattr(view, "View", Counted)
    rows = climb(load_config(det_config), [plain], context=[context], ensemble=[plain, context], scales=(48, 64, 80))
    each = [images for _, _, images in seen]
    assert sum(each) == 5 * 2 * 3  # five images, two nets, three sizes, whatever the number of rows
    base, refined, _, pyramid, both = rows
    assert set(base.stages) < set(refined.stages)
    assert refined.stages["backbone"] == base.stages["backbone"]  # the same work, for both
    assert both.stages["backbone"] > pyramid.stages["backbone"] > base.stages["backbone"]
    assert refined.seconds == pytest.approx(sum(refined.stages.values()))


def test_seeds_give_mean_and_spread(det_config, nets):
    plain, _ = nets
    rows = climb(load_config(det_config), [plain, plain], scales=(48, 64), group=["red", "blue"])
    assert [row.name for row in rows][-1] == "ensemble of 2 (paper: test-dev)"
    assert len(rows[0].runs) == 2 and rows[0].spread("AP") == 0
    run = rows[0].runs[0]
    assert run["group"] == pytest.approx((run["class/red"] + run["class/blue"]) / 2)


def test_the_table_by_hand():
    # 27.2 % and 31.2 % in the two runs: mean 29.2, standard deviation 4 / sqrt(2) = 2.8; +2.0 over the paper's 27.2.
    runs = [{"AP": 0.272, "AP50": 0.5, "APs": -1.0, "APm": 0.1, "APl": 0.2}]
    runs.append({"AP": 0.312, "AP50": 0.5, "APs": -1.0, "APm": 0.1, "APl": 0.2})
    first = Row(*RUNGS[0], runs, 0.5, {})
    second = Row(*RUNGS[1], [{**run, "AP": run["AP"] + 0.01} for run in runs], 1.25, {})
    assert first.mean("AP") == pytest.approx(29.2) and first.spread("AP") == pytest.approx(4 / math.sqrt(2))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in as_markdown([first, second]).splitlines()
    ]
    assert lines[2] == [
        "baseline Faster R-CNN",
        "27.2",
        "29.2 ± 2.8",
        "+2.0",
        "",
        "50.0 (48.4)",
        "-",
        *["10.0 ± 0.0", "20.0 ± 0.0"],
        "0.50",
    ]
    assert lines[3][:5] == ["+ box refinement", "29.9", "30.2 ± 2.8", "+0.3", "+1.0 (+2.7)"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain, context: dict(baseline=[context]), "found:  a net with global context"),
        (lambda plain, context: dict(baseline=[plain], context=[plain]), "found:  a net without global context"),
        (lambda plain, context: dict(baseline=[plain, plain], context=[context]), "1 checkpoints"),
        (lambda plain, context: dict(baseline=[plain], scales=(64, 48)), "rising order"),
        (lambda plain, context: dict(baseline=[plain], group=["purple"]), "purple"),
        (lambda plain, context: dict(baseline=["missing.pth"]), "no such file"),
    ],
)
def test_refusals(det_config, nets, change, words):
    with pytest.raises(InputError) as caught:
        climb(load_config(det_config), **change(*nets))
    assert words in str(caught.value)


def test_the_tool(det_config, nets, tmp_path, capsys):
    plain, context = nets
    files = ["--out", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    cli.ladder([str(det_config), "--baseline", plain, "--context", context, "--scales", "48", "64", *files])
    printed = capsys.readouterr().out
    assert printed.count("\n|") == 5 and "+ multi-scale testing" in printed
    assert printed.splitlines()[-1] == "left out: ensemble, which needs several nets of a kind (--ensemble)"
    content = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in content["rows"]] == [rung.name for rung in RUNGS[:4]]
    tiles = ["--tiles", "64", "--out", str(tmp_path / "b.json")]
    cli.ladder([str(det_config), "--baseline", plain, "--scales", "48", *tiles])
    assert capsys.readouterr().out.splitlines()[5].startswith("| + tiles of 64 px")
    last = json.loads((tmp_path / "b.json").read_text())["rows"][-1]
    assert (last["name"], last["paper"]) == ("+ tiles of 64 px", None)
    assert content["scales"] == [48, 64] and content["rows"][1]["stages"]["refinement"] > 0
    assert (tmp_path / "a.md").read_text().startswith(printed.splitlines()[0][:20])


def test_what_checkpoints_tell_is_not_overridden(det_config, nets):
    for option, words in (
        ("model.context=True", r"model.context\n  needed: checkpoints tell their nets; of a model only score_"),
        ("test.ensemble=('a',)", "--ensemble"),
    ):
        with pytest.raises(SystemExit, match=words):
            cli.ladder([str(det_config), "--baseline", nets[0], "--scales", "48", "--cfg-options", option])


def test_overrides_of_testing_reach_every_net(det_config, nets, monkeypatch):
    plain, context = nets
    sides, real = [], view.View
    monkeypatch.setattr(
        view, "View", lambda net, images, side, **more: sides.append(side) or real(net, images, side, **more)
    )
    config = load_config(det_config, ["model.shorter_side=40", "model.test_proposals=(20,7)"])
    rows = climb(config, [plain], context=[context], ensemble=[plain, context], scales=(48,))
    assert len(rows) == 5 and set(sides) == {40, 48}


def test_rows_that_are_left_out(det_config, nets):
    rows = climb(load_config(det_config), [nets[0]], scales=(48,))
    assert left_out(rows) == [
        "left out: + global context, which needs nets with global context (--context)",
        "left out: ensemble, which needs several nets of a kind (--ensemble)",
    ]
    pair = climb(load_config(det_config), [nets[0]], context=[nets[1]], ensemble=[nets[0]], scales=(48,))
    assert left_out(pair) == []


def test_a_class_without_objects_has_no_figure(det_config, write_config, nets, tiny, tmp_path):
    content = json.loads(tiny.val.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 9]
    (tmp_path / "no_red.json").write_text(json.dumps(content))
    options = [f"test_data.annotation_file={tmp_path / 'no_red.json'}"]
    for group, figure in ((["red", "blue"], "class/blue"), (["red"], None)):
        first = climb(load_config(det_config, options), [nets[0]], scales=(48,), group=group)[0]
        assert first.runs[0]["group"] == (first.runs[0][figure] if figure else -1)
        assert as_markdown([first], group="red").splitlines()[2].count(" - ") == (
            2 if figure else 3
        )  # nothing is medium or large
