"""A detector as a function of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resdet.api.pictures import Picture, plain_values, to_tensor, usable_device
from resdet.api.sources import frames
from resdet.backbones.weights import load_exactly
from resdet.engine.checkpoints import check_same, read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import build_net
from resdet.engine.tasks.detection import build_predictor, open_detector
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.structures import Detections


class Detector:
    """A trained detector: ``Detector("best.pth")(image)``. No config, no data set and no runner is needed.

    Args:
        config_or_checkpoint: last.pth or best.pth, or what ``tools/publish.py`` made of one; or the config that it was
            trained with.
        checkpoint: after a config.
        device: ``"cpu"``, ``"cuda"``, ...; the GPU where there is one.
        score_threshold: least score of a detection; None leaves the net's, which is chosen for evaluation (0.05).
        options: overrides of what the net was trained with, as ``"model.max_per_image=20"``.
        test: how it looks at an image, as ``{"refine": 1, "vote": 0.5}``: see
            :class:`resdet.inference.settings.TestSettings`.

    Raises:
        InputError: config or checkpoint are not as needed, or do not fit each other.

    Attributes:
        classes: K names, index = label.
        category_ids: of each class in the data that it was trained on; 1 to K where the checkpoint does not tell.
    """

    def __init__(
        self,
        config_or_checkpoint: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        score_threshold: float | None = None,
        options: Sequence[str] = (),
        test: Mapping[str, object] | None = None,
    ) -> None:
        given, test = Path(config_or_checkpoint), plain_values(test or {})
        if checkpoint is None and given.suffix == ".py":
            raise InputError("Detector", found="a config alone", needed="a checkpoint: Detector('best.pth')")
        if checkpoint is None:
            predictor, meta = open_detector(given, options, test)
        else:
            predictor, meta = _with_config(given, checkpoint, options, test)
        if score_threshold is not None:
            settings = TestSettings(score_threshold=score_threshold)  # refuses what is no score
            predictor.suppression = predictor.suppression._replace(score_threshold=settings.score_threshold)
        self.classes: tuple[str, ...] = tuple(meta["classes"])
        self.category_ids: tuple[int, ...] = tuple(meta.get("category_ids") or range(1, len(self.classes) + 1))
        self.device = usable_device(device)
        self.net = predictor.to(self.device, memory_format=torch.channels_last)

    @classmethod
    def from_hub(
        cls, name: str | Path, *, file: str | None = None, revision: str | None = None, **how: Any
    ) -> Detector:
        """A detector that someone published.

        Args:
            name: ``"user/name"`` on the Hugging Face hub, or a folder.
            file: which of its files, where there are several.
            revision: branch, tag or commit on the hub.
            how: as for the class.

        Raises:
            InputError: it cannot be fetched, or has no single .safetensors file.
        """
        folder = Path(name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.safetensors"]))
            except Exception as error:  # the hub's errors have many bases: requests', its own, ValueError
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise InputError(
                    f"hub {name}", found=reason, needed="user/name of a model there, and a network"
                ) from error
        known = sorted(path.name for path in folder.glob("*.safetensors"))
        if file is None and len(known) != 1:
            found = ", ".join(known) or "no .safetensors file"
            raise InputError(f"hub {name}", found=found, needed="one that tools/publish.py made, or file=NAME")
        return cls(folder / (file or known[0]), **how)

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

    def stream(self, source: str | Path | int) -> Iterator[tuple[Tensor, Detections]]:
        """Frames and their detections, one by one, as they come.

        Args:
            source: an image, a folder, a pattern (``"shots/*.jpg"``), a video file, the number of a camera, or the
                address of a stream (``rtsp://...``).

        Yields:
            A uint8 RGB (3, H, W) frame, and its detections.

        Raises:
            InputError: no such source; an image that does not decode.
        """
        for frame in frames([source]):
            if isinstance(frame, InputError):
                raise frame
            yield frame.pixels, self(frame.pixels)


def _with_config(
    config: Path, checkpoint: str | Path, options: Sequence[str], test: Mapping[str, object]
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of a config with the weights of a checkpoint, and what that tells."""
    read = load_config(config, options, overrides={"test": test})
    if read.task.name != "detection":
        raise InputError(f"config {config}", found=f"task = {read.task.name!r}", needed="a detection config")
    loaded = read_checkpoint(checkpoint)
    meta = loaded["meta"]
    read = read.task.adopted(read, meta, checkpoint)
    check_same(checkpoint, meta, model=(read.describe_model(), read.model))
    net = build_net(read, num_classes=len(meta["classes"]), load_init=False)
    load_exactly(read.task.adapter(net), loaded["state_dict"], source=checkpoint)
    return build_predictor(net, read.test, meta["classes"], said=read.said_of_nets), meta
