"""The pictures of appendix B show what a prediction did, and the page about them names only what exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet import cli
from resdet.datasets.images import read_image
from resdet.engine.checkpoints import write_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import build_net
from resdet.engine.tasks.detection import DetectionAdapter, load_detector
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.inference.refinement import regressed
from resdet.inference.settings import TestSettings
from resdet.inference.view import View
from resdet.structures import ImageBatch
from resdet.studies.looks import draw_ensemble, draw_multiscale, draw_suppression
from resdet.studies.panels import SURE, Subject, ask, observe, zoom
from resdet.studies.steps import (
    REFINED,
    draw_baseline,
    draw_context,
    draw_refinement,
    draw_voting,
    show_steps,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "appendix_b.md"
NAMES = ["1_baseline", "2_refinement", "3_voting", "4_context", "5_multiscale", "6_ensemble", "7_suppression"]
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def nets(det_config, tmp_path_factory):
    """Checkpoints of tiny nets with random answers: two plain, one with context, and one that is sure of nothing."""
    folder = tmp_path_factory.mktemp("random")

    def write(name: str, seed: int, *, context: bool = False, blind: bool = False) -> str:
        config = load_config(det_config, [f"model.context={context}"])
        torch.manual_seed(seed)
        net = build_net(config, num_classes=3, load_init=False)
        for layer, std in (
            (net.rpn.head.objectness, 0.5),
            (net.rpn.head.deltas, 0.05),
            (net.roi_head.class_logits, 0.0 if blind else 3.0),
            (net.roi_head.box_deltas, 0.3),
        ):
            nn.init.normal_(layer.weight, std=std)
        meta = {"classes": list(CLASSES), "model": {**config.describe_model(), "num_classes": 3}}
        write_checkpoint(folder / name, {"meta": meta, "state_dict": DetectionAdapter(net).state_dict()})
        return str(folder / name)

    return {
        "plain": write("plain.pth", 0),
        "second": write("second.pth", 1),
        "context": write("context.pth", 2, context=True),
        "blind": write("blind.pth", 3, blind=True),
    }


@pytest.fixture
def image(tiny) -> Path:
    return sorted(tiny.images.glob("*.png"))[0]


@pytest.fixture
def subject(nets, image) -> Subject:
    pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1).contiguous()
    return Subject(load_detector(nets["plain"], CLASSES).eval(), pixels, CLASSES)


def rectangles(axes) -> torch.Tensor:
    """(n, 4) xyxy of what is outlined on a panel, in the order of drawing."""
    found = [p for p in axes.patches if isinstance(p, Rectangle)]
    rows = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in found]
    return torch.tensor(rows).reshape(-1, 4)


# --- what is drawn


def test_what_is_observed_is_the_prediction(subject):
    given = observe(subject, [subject.net], REFINED)
    (found,) = Predictor([subject.net], REFINED).predict([subject.image])
    after = given.voted
    assert len(found.boxes) > 0
    assert_close(after.scores, found.scores)
    frame = given.views[0].frame
    assert_close(box_ops.scale(after.boxes, frame.input_hw[0], frame.sample_hw[0]), found.boxes)


@torch.no_grad()
def test_asking_a_view_gives_what_the_prediction_had(nets, subject):
    net = load_detector(nets["context"], CLASSES).eval()
    given = observe(subject, [net], TestSettings())
    view = given.views[0]
    answer = ask(view, given.proposals, view.frame)
    assert_close(tuple(answer), tuple(given.first))


@torch.no_grad()
def test_refinement_draws_the_chain_of_boxes(subject):
    # Each panel: a proposal, the box that the head makes of it, and the box that it makes of that one.
    figure = draw_refinement(subject)
    view = View(subject.net, [subject.image])
    proposals = view.propose(view.frame)[0][0]
    assert 1 <= len(figure.axes) <= 3
    for panel in figure.axes:
        chain = rectangles(panel)
        assert len(chain) == 3
        assert (proposals - chain[0]).abs().amax(1).min() < 1e-3
        for start, end in ((chain[:1], chain[1]), (chain[1:2], chain[2])):
            assert_close(regressed(ask(view, start, view.frame))[0], end, atol=1e-2, rtol=0)


@torch.no_grad()
def test_voting_draws_the_mean_of_the_voters(subject):
    figure = draw_voting(subject)
    voters, (old, new) = rectangles(figure.axes[0]), rectangles(figure.axes[1])
    given = observe(subject, [subject.net], REFINED)
    union, kept = given.scored, given.kept
    row = int((kept.boxes - old).abs().amax(1).argmin())
    kind = int(kept.labels[row])
    total, weight, count = torch.zeros(4), 0.0, 0
    for box, score in zip(union.boxes[:, kind % union.boxes.shape[1]], union.probabilities[:, kind], strict=True):
        if float(box_ops.iou(box[None], old[None])) >= 0.5:
            total, weight, count = total + score * box, weight + float(score), count + 1
    assert len(voters) == count > 0
    assert_close(total / weight, new, atol=1e-2, rtol=0)


@pytest.mark.parametrize("scales", [(64,), (48, 64, 96)])
@torch.no_grad()
def test_multiscale_outlines_each_object_on_two_scales(subject, scales):
    figure = draw_multiscale(subject, scales, 24.0)
    boxes = [b for b in rectangles(figure.axes[0]).tolist() if b[0] != 2]  # not the square of the best size
    texts = [t.get_text() for t in figure.axes[0].texts if re.fullmatch(r"\d+ px", t.get_text())]
    sides = [((b[2] - b[0]) * (b[3] - b[1])) ** 0.5 for b in boxes]
    assert texts == [f"{side:.0f} px" for side in sides]
    objects = len(figure.legends[0].get_texts())
    assert len(boxes) == objects * min(2, len(scales))
    assert [t.get_text() for t in figure.axes[0].texts if "shorter" in t.get_text()] == [
        f"shorter side {size}" for size in scales
    ]


@torch.no_grad()
def test_the_other_pictures_show_the_answers(nets, subject):
    second, wider = (load_detector(nets[name], CLASSES).eval() for name in ("second", "context"))
    sure = TestSettings(score_threshold=SURE)
    plain = observe(subject, [subject.net], sure).kept
    assert_close(rectangles(draw_baseline(subject, "").axes[1]), plain.boxes)
    seen = observe(subject, [wider], sure).kept
    figure = draw_context(subject, wider)
    assert_close(rectangles(figure.axes[0])[:-1], plain.boxes)  # the last outlines the object in question
    assert_close(rectangles(figure.axes[1])[:-1], seen.boxes)
    both = observe(subject, [subject.net, second], sure).kept
    drawn = rectangles(draw_ensemble(subject, [second]).axes[1])
    assert_close(drawn[-len(both.boxes) :], both.boxes)
    # Both nets' boxes of the same regions come first, and the answer is their mean.
    assert_close(drawn[: -len(both.boxes)].unflatten(0, (2, -1)).mean(0), both.boxes, atol=1e-2, rtol=0)


@torch.no_grad()
def test_suppression_shows_fewer_boxes_than_before(subject):
    before, hard, linear, gaussian, looks, merged = (rectangles(axes) for axes in draw_suppression(subject).axes)
    assert 1 <= len(hard) <= min(len(linear), len(gaussian)) and max(len(linear), len(gaussian)) <= len(before)
    assert 1 <= len(merged) <= len(looks)


def testzoom():
    # A 20 x 20 box in an image of 100 x 50: the taller share, 20/50, times 1.35 is 0.54 of the image, 54 x 27,
    # around (20, 30): from -7, moved to 0, and from 30 - 13.5 = 16.5.
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    frame = ImageBatch(torch.empty(0), [(50, 100)], [(50, 100)])
    zoom(axes, torch.tensor([[10.0, 20.0, 30.0, 40.0]]), frame)
    assert axes.get_xlim() == pytest.approx((0, 54))
    assert axes.get_ylim() == pytest.approx((43.5, 16.5))
    zoom(axes, torch.tensor([[0.0, 0.0, 99.0, 10.0]]), frame)  # no farther than the image
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (50, 0))


# --- the tool


def test_the_tool_writes_every_picture(nets, image, tmp_path, capsys):
    words = [nets["plain"], image, "--context", nets["context"], "--ensemble", nets["second"]]
    words += ["--scales", 48, 64, 96, "--region-side", 24, "--out", tmp_path / "steps"]
    cli.show_steps([str(word) for word in words])
    written = [tmp_path / "steps" / f"{name}.jpg" for name in NAMES]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    for path in written:
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.width > 500 and picture.height > 200


def test_without_further_nets_their_pictures_are_left_out(nets, image, tmp_path):
    written = show_steps(nets["plain"], image, scales=(48, 64), region_side=24, out=tmp_path)
    assert [path.stem for path in written] == [name for name in NAMES if name[0] not in "46"]
    assert sorted(tmp_path.iterdir()) == written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "no.jpg"}, ("image no.jpg", "no such file")),
        ({"checkpoint": "no.pth"}, ("checkpoint no.pth", "no such file")),
        ({"context": "no.pth"}, ("checkpoint no.pth", "no such file")),
        ({"ensemble": ["no.pth"]}, ("checkpoint no.pth", "no such file")),
        ({"scales": (64, 48)}, ("test.scales", "rising")),
        ({"context": "second"}, ("second.pth", "without global context", "with global context")),
        ({"checkpoint": "context"}, ("context.pth", "with global context", "without global context")),
        ({"checkpoint": "blind"}, ("no object with a score above 0.5", "finds something")),
    ],
)
def test_mistakes_are_told(nets, image, tmp_path, changes, words):
    given = {"checkpoint": "plain", "image": image, "out": tmp_path / "out", "scales": (48, 64)} | changes
    for name in ("checkpoint", "context"):
        given[name] = nets.get(given.get(name), given.get(name))
    with pytest.raises(InputError) as told:
        show_steps(given.pop("checkpoint"), given.pop("image"), **given)
    assert [word for word in words if word not in str(told.value)] == []
    assert not (tmp_path / "out").exists()


def test_the_tool_tells_a_mistake_without_a_traceback(nets):
    with pytest.raises(SystemExit) as stop:
        cli.show_steps([nets["plain"], "no.jpg"])
    assert str(stop.value).startswith("error: image no.jpg\n  found:  no such file")


# --- the page


def test_the_page_links_what_exists():
    text = PAGE.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
    named = re.findall(r"`(\w+)` \(`(resdet/[\w/]+)\.py`\)", text)
    assert len(named) > 10
    for name, module in named:
        assert hasattr(importlib.import_module(module.replace("/", ".")), name), f"{module}.py has no {name}"
    for path in re.findall(r"\b(?:tools|configs)/\w+\.py", text):
        assert (ROOT / path).exists(), path


def test_every_picture_is_on_the_page_and_small():
    pictures = sorted((PAGE.parent / "appendix_b").iterdir())
    assert [picture.name for picture in pictures] == [f"{name}.jpg" for name in NAMES]
    shown = re.findall(r"!\[.+\]\(appendix_b/([\w.]+)\)", PAGE.read_text())
    assert shown == [picture.name for picture in pictures]
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []


def test_every_flag_and_setting_on_the_page_exists(capsys):
    text = PAGE.read_text()
    helps = {}
    for tool, main in (("eval", cli.evaluate), ("infer", cli.infer), ("show_steps", cli.show_steps)):
        with pytest.raises(SystemExit, match="0"):
            main(["-h"])
        helps[tool] = capsys.readouterr().out
    commands = re.findall(r"```\n(.*?)```", text, flags=re.S)
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        tool = Path(words[1]).stem
        assert [w for w in words if w.startswith("--") and not re.search(rf"{w}\b", helps[tool])] == []
    prose = set(re.findall(r"`(--[\w-]+)", text))
    assert {"--refine", "--vote", "--scales", "--ensemble", "--flip", "--sizes", "--merge", "--nms"} <= prose
    for flag in prose:
        assert all(re.search(rf"{flag}\b", helps[tool]) for tool in ("eval", "infer")), flag
    for name in [*re.findall(r"test\.(\w+)=", text), *re.findall(r"[({\"](\w+)\"?[=:] ?[\d.]+", text)]:
        assert name in TestSettings.model_fields, name


def test_the_command_line_of_the_page_is_read(capsys):
    # What `tools/eval.py` would be given, up to the files that a reader has.
    command = re.findall(r"```\n(.*?)```", PAGE.read_text(), flags=re.S)[0]
    words = shlex.split(command.replace("\\\n", " "))[2:]
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(["configs/none.py", *words[1:]])
    assert "none.py" in str(stop.value)
