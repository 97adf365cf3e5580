"""The web page: a picture in, boxes, a table and files out, for several detectors side by side."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch

from resdet.api.detector import Detector
from resdet.api.drawing import draw_detections
from resdet.deploy.serving import LARGEST_SIDE, MOST_LOOKS, MOST_ROUNDS, Answer, Service
from resdet.errors import InputError
from resdet.inference.settings import TestSettings

COLUMNS = ("detector", "class", "score", "x1", "y1", "x2", "y2")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""With fonts of the system: none is fetched."""
STYLE = """
.gradio-container {width: 100%; max-width: 1400px !important; margin: auto}
.main, .wrap, .contain {min-width: 0 !important}
.column {max-width: 100%}
.main, .contain {width: 100%}
#table {overflow-x: auto}
"""
KEPT, AGE = 20, 3600
"""Answers whose files are kept for download, and seconds that uploads are."""


class _Controls(NamedTuple):
    """Of the page, in the order in which a function gets their values."""

    image: Any
    only: Any
    score_threshold: Any
    refine: Any
    vote: Any
    flip: Any
    scales: Any
    sizes: Any
    merge: Any
    nms: Any
    nms_iou: Any
    max_per_image: Any


def build_page(service: Service, *, one_line: Callable[[Exception], str]) -> gr.Blocks:
    """The page of a service.

    Args:
        service: the detectors.
        one_line: the text of an error.
    """
    with gr.Blocks(title="resdet", analytics_enabled=False, delete_cache=(AGE, AGE)) as page:
        gr.Markdown(f"# resdet\n{_told(service)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                controls = _controls(service)
                start = gr.Button("Detect", variant="primary", elem_id="detect")
            with gr.Column(scale=2, min_width=320):
                seen = _pictures(service)
                table = gr.Dataframe(
                    headers=list(COLUMNS), datatype=["str", "str", *["number"] * 5], interactive=False, elem_id="table"
                )
                record = gr.DownloadButton("Download JSON", interactive=False, elem_id="json")
        look = _Look(service, one_line)
        outputs = [*(part for pair in seen for part in pair), table, record]
        how: dict[str, Any] = {"outputs": outputs, "concurrency_id": "nets", "concurrency_limit": 1}
        start.click(look, list(controls), **how, api_visibility="private")
        again = {"trigger_mode": "always_last", "show_progress": "minimal"}
        controls.image.input(look, list(controls), **how, api_visibility="private")
        for control in (controls.only, controls.score_threshold):
            event = control.release if isinstance(control, gr.Slider) else control.input
            event(look, list(controls), **how, **again, api_visibility="private")
    return page


class _Look:
    """Looks at a picture with all detectors; what comes out is in the order of the page.

    Args:
        service: the detectors.
        one_line: the text of an error.
    """

    __name__ = "look"  # which gradio asks of a function

    def __init__(self, service: Service, one_line: Callable[[Exception], str]) -> None:
        self.service, self.one_line = service, one_line
        self._folders: deque[Path] = deque()

    def __call__(self, *values: Any) -> list[Any]:
        given = _Controls(*values)
        empty: list[Any] = [None, gr.DownloadButton(interactive=False, value=None)] * len(self.service.detectors)
        if given.image is None:
            return [*empty, [], gr.DownloadButton(interactive=False, value=None)]
        try:
            pixels = self.service.read(Path(given.image), name="image")
            answers = [self._answer(name, pixels, given) for name in self.service.detectors]
        except InputError as error:
            raise gr.Error(self.one_line(error), print_exception=False) from error
        folder = self._folder()
        shown: list[Any] = []
        for number, answer in enumerate(answers, 1):
            path = folder / f"detections_{number}.png"
            drawn(answer, self.service.detectors[answer.model].classes).save(path)
            shown += [str(path), gr.DownloadButton(value=str(path), interactive=True)]
        path = folder / "detections.json"
        path.write_text(json.dumps([answer.record() for answer in answers], indent=1))
        return [*shown, rows(answers), gr.DownloadButton(value=str(path), interactive=True)]

    def _answer(self, name: str, pixels: Any, given: _Controls) -> Answer:
        test = asked(given)
        if not isinstance(self.service.detectors[name], Detector):  # an exported detector has its own of the others
            plain = TestSettings()
            own = ("nms_iou", "max_per_image", "nms")
            test = {key: v for key, v in test.items() if key not in own and v != getattr(plain, key)}
        return self.service.detect(pixels, model=name, test=test, only=given.only)

    def _folder(self) -> Path:
        """A new one; the oldest go."""
        self._folders.append(Path(tempfile.mkdtemp(dir=Path(gr.utils.get_upload_folder()))))
        while len(self._folders) > KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        return self._folders[-1]


def asked(given: _Controls) -> dict[str, object]:
    """Settings of section ``test`` that the controls say.

    Raises:
        InputError: a side that is no number.
    """
    test: dict[str, object] = {"refine": int(given.refine), "flip": bool(given.flip), "nms": given.nms}
    test |= {"score_threshold": float(given.score_threshold), "vote": float(given.vote) or None}
    test |= {"scales": _sides("scales", given.scales), "sizes": _sides("sizes", given.sizes)}
    if given.nms_iou:
        test["nms_iou"] = float(given.nms_iou)
    if given.max_per_image:
        test["max_per_image"] = int(given.max_per_image)
    return {**test, "merge": given.merge if test["flip"] or test["sizes"] else "nms"}


def _sides(name: str, text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise InputError(name, found=repr(text), needed="shorter sides in pixels, as 400 600 800")
    return tuple(map(int, words))


def rows(answers: Sequence[Answer]) -> list[list[Any]]:
    """A row of :data:`COLUMNS` for each box."""
    return [
        [answer.model, name, round(float(score), 4), *(round(float(side), 2) for side in box)]
        for answer in answers
        for name, score, box in zip(answer.names, answer.scores, answer.boxes, strict=True)
    ]


def drawn(answer: Answer, classes: Sequence[str]) -> Any:
    """The picture with its boxes."""
    image = torch.from_numpy(answer.pixels).permute(2, 0, 1)
    boxes, labels, scores = map(torch.from_numpy, (answer.boxes, answer.labels, answer.scores))
    return draw_detections(image, boxes, labels, scores, classes=classes)


def _told(service: Service) -> str:
    """What is served, in a line."""
    names = ", ".join(f"`{name}`" for name in service.detectors)
    return f"{names}: {len(service.classes)} classes. Drop an image, choose one, or take one with the camera."


def _pictures(service: Service) -> list[tuple[Any, Any]]:
    """A place for each detector's picture, and a button that downloads it."""
    places = []
    with gr.Row():
        for name in service.detectors:
            with gr.Column(min_width=300):
                image = gr.Image(
                    label=name,
                    type="filepath",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_classes="seen",
                )
                places.append((image, gr.DownloadButton("Download picture", interactive=False)))
    return places


def _controls(service: Service) -> _Controls:
    """The left side, set to what the first detector does where nothing is said."""
    own = service.settings()
    sources = ["upload", "webcam", "clipboard"]
    image = gr.Image(
        label="Picture", type="filepath", image_mode=None, sources=sources, buttons=["fullscreen"], elem_id="image"
    )
    image.preprocess = lambda given: (
        given and given.path
    )  # its own opens files of any format, and raises Pillow's errors
    threshold = gr.Slider(0, 1, value=own.score_threshold, step=0.01, label="Least score", elem_id="threshold")
    only = gr.Dropdown(list(service.classes), multiselect=True, value=[], label="Classes", info="none: all")
    with gr.Accordion("Look more than once", open=False):
        refine = gr.Slider(0, MOST_ROUNDS, value=own.refine, step=1, label="Rounds of box refinement")
        vote = gr.Slider(0, 1, value=own.vote or 0, step=0.05, label="Box voting", info="least IoU, as 0.5; 0: none")
        flip = gr.Checkbox(value=own.flip, label="The mirrored image too")
        note = f"shorter sides, as 400 600 800; {MOST_LOOKS} at most, to {LARGEST_SIDE} pixels"
        scales = gr.Textbox(_words(own.scales), label="Multi-scale testing", info=note)
        sizes = gr.Textbox(_words(own.sizes), label="Further sizes", info=note)
        merge = gr.Radio(["nms", "wbf"], value=own.merge, label="Mirror and sizes are merged by")
    with gr.Accordion("Suppression", open=False):
        nms = gr.Radio(["hard", "linear", "gaussian"], value=own.nms, label="NMS")
        nms_iou = gr.Slider(
            0, 1, value=own.nms_iou or 0, step=0.05, label="IoU beyond which the lesser goes", info="0: the net's"
        )
        most = gr.Number(own.max_per_image or 0, precision=0, minimum=0, label="Most detections", info="0: the net's")
    return _Controls(image, only, threshold, refine, vote, flip, scales, sizes, merge, nms, nms_iou, most)


def _words(sides: Sequence[int]) -> str:
    return " ".join(map(str, sides))
