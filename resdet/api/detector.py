"""A detector as a function of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from resdet.api.pictures import Picture, plain_values, to_tensor, usable_device
from resdet.backbones.weights import load_exactly
from resdet.engine.checkpoints import check_same, read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import build_net
from resdet.engine.tasks.detection import build_predictor
from resdet.errors import InputError
from resdet.structures import Detections


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
        read = load_config(config, options, overrides={"test": plain_values(test or {})})
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
