"""Detector and localizer as functions of images: ``resdet.Detector(config, checkpoint)(image)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from resdet.backbones.weights import load_exactly
from resdet.datasets.images import read_image
from resdet.engine.checkpoints import check_same, read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import build_net
from resdet.engine.tasks.detection import build_predictor
from resdet.engine.tasks.localization import build_localizer, load_stage
from resdet.errors import InputError, nearest
from resdet.evaluation.coco_rows import coco_results
from resdet.evaluation.report import write_json
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.settings import LocalizationTest
from resdet.structures import Detections, Localizations
from resdet.visualize import draw_detections

Picture = str | Path | np.ndarray | Image.Image | Tensor
"""A path; an (H, W, 3) uint8 RGB array; a PIL image; a (3, H, W) uint8 RGB tensor."""

SURE = 0.5
"""Least score of what is drawn, unless another is asked for: configs' own is for evaluation."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Detector:
    """A trained detector. No data set and no runner is needed; class names come from the checkpoint.

    Args:
        config: the file it was trained with.
        checkpoint: last.pth or best.pth.
        device: ``"cpu"``, ``"cuda"``, ...; the GPU where there is one.
        score_threshold: least score of a detection; None leaves the config's, which is chosen for evaluation (0.05).
        options: overrides of the config, as ``"model.max_per_image=20"``.
        test: how it looks at an image, as ``{"refine": 1, "vote": 0.5}``: see
            :class:`resdet.inference.settings.TestSettings`.

    Raises:
        InputError: config or checkpoint are not as needed, or do not fit each other.

    Attributes:
        classes: K names, index = label.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        *,
        device: str | torch.device | None = None,
        score_threshold: float | None = None,
        options: Sequence[str] = (),
        test: Mapping[str, object] | None = None,
    ) -> None:
        read = load_config(config, options, overrides={"test": _plain_values(test or {})})
        if read.task.name != "detection":
            raise InputError(f"config {config}", found=f"task = {read.task.name!r}", needed="a detection config")
        loaded = read_checkpoint(checkpoint)
        read = read.task.adopted(read, loaded["meta"], checkpoint)
        check_same(checkpoint, loaded["meta"], model=(read.describe_model(), read.model))
        self.classes: tuple[str, ...] = tuple(loaded["meta"]["classes"])
        net = build_net(read, num_classes=len(self.classes), load_init=False)
        load_exactly(read.task.adapter(net), loaded["state_dict"], source=checkpoint)
        predictor = build_predictor(net, read.test, self.classes, said=read.said_of_nets)
        if score_threshold is not None:
            predictor.suppression = predictor.suppression._replace(score_threshold=score_threshold)
        self.device = usable_device(device)
        self.net = predictor.to(self.device, memory_format=torch.channels_last).eval()

    def __call__(self, images: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detect.

        Args:
            images: one picture, or a list of them, of any sizes.

        Returns:
            Detections of one picture, or a list of them; boxes in pixels of the picture, on the CPU.
        """
        single = not isinstance(images, (list, tuple))
        tensors = [to_tensor(image) for image in ([images] if single else images)]
        if not tensors:
            return []
        answers = [Detections(*(part.cpu() for part in answer)) for answer in self.net.predict(tensors)]
        return answers[0] if single else answers


class Localizer:
    """A trained localizer: the box of a class, for classes that are given or that a classifier predicts.

    Checkpoints alone make it; no config and no data set is needed.

    Args:
        checkpoint: of a first stage, last.pth or best.pth.
        classifier: checkpoint of a classifier for the same classes, or several, which are averaged. It sees crops of
            ``test["classifier_crop"]``, 224 unless another is given: the side of the crops that it was trained on.
        second: checkpoint of a second stage, or several, which are averaged.
        device: ``"cpu"``, ``"cuda"``, ...; the GPU where there is one.
        test: how it looks at an image, as ``{"view": "dense", "sides": (256, 384)}``: see
            :class:`resdet.localization.settings.LocalizationTest`.

    Raises:
        InputError: a checkpoint is missing, of another kind or for other classes; settings that make no sense.

    Attributes:
        classes: K names, index = label.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        classifier: str | Path | Sequence[str | Path] = (),
        second: str | Path | Sequence[str | Path] = (),
        device: str | torch.device | None = None,
        test: Mapping[str, object] | None = None,
    ) -> None:
        files = {"classifiers": classifier, "second": second}
        files = {k: tuple(map(str, [v] if isinstance(v, (str, Path)) else v)) for k, v in files.items()}
        said = _plain_values(test or {}) | {k: v for k, v in files.items() if v}
        settings = LocalizationTest.read(said, where="Localizer")
        self.classes: tuple[str, ...] = tuple(read_checkpoint(checkpoint)["meta"]["classes"])
        net = load_stage(checkpoint, self.classes, PerClassLocalizer)
        predictor = build_localizer(net, settings, self.classes)
        self.device = usable_device(device)
        self.net = predictor.to(self.device, memory_format=torch.channels_last).eval()

    def __call__(
        self, images: Picture | Sequence[Picture], classes: Sequence[str | int] | str | int | None = None
    ) -> Localizations | list[Localizations]:
        """Localize.

        Args:
            images: one picture, or a list of them, of any sizes.
            classes: names or labels of what to look for in each of them; None: what the classifier predicts.

        Returns:
            A box for each class, of one picture or a list of them; boxes in pixels of the picture, on the CPU.

        Raises:
            InputError: a class that is not one of the net's; no classes, and no classifier.
        """
        single = not isinstance(images, (list, tuple))
        tensors = [to_tensor(image) for image in ([images] if single else images)]
        if not tensors:
            return []
        asked = None if classes is None else [self._labels(classes)] * len(tensors)
        answers = [Localizations(*(part.cpu() for part in a)) for a in self.net.predict(tensors, asked)]
        return answers[0] if single else answers

    def draw(self, image: Picture, answer: Localizations) -> Image.Image:
        """The picture with the boxes of an answer, which may be cut short: ``Localizations(*(part[:1] ...))``."""
        return draw_detections(to_tensor(image), answer.boxes, answer.labels, answer.scores, classes=self.classes)

    def _labels(self, classes: Sequence[str | int] | str | int) -> Tensor:
        named = [classes] if isinstance(classes, (str, int)) else list(classes)
        for name in named:
            if name not in self.classes and not (isinstance(name, int) and 0 <= name < len(self.classes)):
                raise InputError("classes", found=repr(name), needed=nearest(str(name), self.classes))
        return torch.tensor([name if isinstance(name, int) else self.classes.index(name) for name in named])


def _plain_values(said: Mapping[str, object]) -> dict[str, object]:
    return {name: _plain(value) for name, value in said.items()}


def _plain(value: object) -> object:
    """A value of Python as settings take it: numpy's numbers and paths are no types of theirs."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of a name, or the GPU where there is one.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(name)!r}", found=reason, needed="cpu, or cuda on a machine with a GPU"
        ) from error
    return device


def to_tensor(picture: Picture) -> Tensor:
    """Any picture as a uint8 RGB (3, H, W) tensor.

    Raises:
        InputError: it is none, or its file does not decode.
    """
    if isinstance(picture, Tensor):
        return picture  # checked by Preprocess
    if isinstance(picture, Image.Image):
        picture = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    elif isinstance(picture, (str, Path)):
        picture = read_image(str(picture))
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        found = (
            f"{picture.dtype} of shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        )
        raise InputError("image", found=found, needed="a path, a PIL image, or uint8 RGB (H, W, 3) / (3, H, W)")
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def infer_files(
    config: str | Path,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path,
    score_threshold: float | None = None,
    device: str | None = None,
    batch_size: int = 1,
    options: Sequence[str] = (),
) -> tuple[int, dict[str, float]]:
    """Annotated pictures of files and folders, and ``detections.json`` in COCO's form beside them.

    Without a ``score_threshold``, and without one in the config's section ``test``, it is :data:`SURE`.

    Returns:
        Number of images, and the seconds per image of each stage.

    Raises:
        InputError: no image is found, or one does not decode.
    """
    if batch_size < 1:
        raise InputError("batch size", found=batch_size, needed="at least 1")
    own = Path(out).resolve()  # pictures of an earlier call are no input
    paths = [p for entry in images for p in _image_files(Path(entry)) if own not in p.resolve().parents]
    detector = Detector(config, checkpoint, device=device, score_threshold=score_threshold, options=options)
    net = detector.net
    if score_threshold is None and net.settings.score_threshold is None:
        net.suppression = net.suppression._replace(score_threshold=SURE)
    net.timed = True
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    category_ids = np.arange(1, len(detector.classes) + 1)
    rows, listed, taken = [], [], set()
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        tensors = [to_tensor(path) for path in chunk]
        for number, (path, tensor, answer) in enumerate(zip(chunk, tensors, detector(tensors), strict=True), start + 1):
            picture = draw_detections(tensor, answer.boxes, answer.labels, answer.scores, classes=detector.classes)
            picture.save(_free_name(out, path.stem, taken))
            rows += coco_results(answer, number, category_ids)
            listed.append({"id": number, "file_name": str(path), "height": tensor.shape[1], "width": tensor.shape[2]})
    categories = [{"id": int(i), "name": name} for i, name in zip(category_ids, detector.classes, strict=True)]
    write_json(out / "detections.json", {"images": listed, "categories": categories, "annotations": rows})
    return len(paths), net.seconds_per_image()


def _free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """A picture's place; images of one name in several folders get numbers."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return folder / f"{name}.png"


def _image_files(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    found = sorted(p for p in entry.rglob("*") if p.suffix.lower() in SUFFIXES) if entry.is_dir() else []
    if not found:
        what = "a folder without images" if entry.is_dir() else "no such file or folder"
        raise InputError(entry, found=what, needed=f"an image ({', '.join(SUFFIXES)}) or a folder of them")
    return found
