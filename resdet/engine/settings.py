"""The sections of a config that are plain numbers, with their defaults. A key that is not here is an error."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple


class Loader(NamedTuple):
    """Section ``loader``."""

    batch_size: int = 16
    """Images of a training step over all processes together."""
    workers: int = 2
    """Loader processes for each training process."""
    test_batch_size: int = 1
    """Images of a test step in each process."""
    group_aspect: bool = True
    """Keep landscape and portrait images in batches of their own, so that little is padding (detection)."""
    reduce: bool = False
    """Train on large JPEGs decoded at 1/2, 1/4 or 1/8, while no side is shorter than the net's input (detection): a
    fraction of the time for photographs of many megapixels, and a little smoother than what testing sees."""


class Optimizer(NamedTuple):
    """Section ``optimizer``: SGD."""

    lr: float = 0.02
    """Learning rate for ``batch_size`` images a step."""
    batch_size: int = 16
    """The batch that ``lr`` was chosen for; ``--auto-scale-lr`` scales by the one used, accumulation included."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None
    """Of the scales and shifts of normalisation layers; None: the same as of everything else."""
    nesterov: bool = False
    clip_norm: float | None = None
    """Bound of the gradient's norm over all parameters."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""


class Schedule(NamedTuple):
    """Section ``schedule``: how long, and the learning rate on the way."""

    length: float = 12
    """In ``unit``."""
    unit: Literal["epoch", "step"] = "epoch"
    policy: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = ()
    """In ``unit``: where the rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    warmup_steps: int = 0
    """Linear warm-up over the first steps."""
    warmup_factor: float = 0.001
    """Share of the rate that the warm-up starts from."""
    warmup_error: float | None = None
    """Classification: hold that share until the training error is below this (ResNet-110: 0.8), at most for
    ``warmup_steps``; the warm-up is then no ramp."""
    validate_every: float = 1
    """In ``unit``."""
    validate_last: bool = True
    """Validate after the last step, too."""


class Run(NamedTuple):
    """Section ``run``."""

    seed: int = 0
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Autocast; fp16 needs a GPU."""
    log_every: int = 50
    """Steps."""
    checkpoint_every: int = 1000
    """Steps between two writings of last.pth (it is also written at each validation and at the end)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is tested and saved."""
    early_stopping: int | None = None
    """Validations without a better score after which training stops."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the net in training (:mod:`resdet.engine.compiled`); needs a C++ compiler, and pays on a GPU."""
    tensorboard: bool = False
    sync_check: bool = False
    """Look at each loss at once instead of one step later: slower on a GPU, for hunting a NaN."""


class Publish(NamedTuple):
    """Section ``publish``: what the classification tool does at its end."""

    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint becomes the published backbone; the best one is chosen on the test data."""

    statistics_images: int | None = 10_000
    """Training images over which BN statistics are computed; None takes all."""


class ClassifierTest(NamedTuple):
    """Section ``test`` of a classification config; that of a detector is :class:`resdet.inference.settings.Inference`.

    The views of an image (10 crops, several scales) are made by the data: ``test_data.crops``, ``test_data.dense``.
    """

    ensemble: tuple[str, ...] = ()
    """Checkpoints of further nets for the same classes; probabilities are averaged."""


class Crop(NamedTuple):
    """Section ``crop`` of a localizer's first stage: the crops that it is trained on, as large as its model says.

    See :class:`resdet.datasets.loc_view.LocalizationCrop`.
    """

    shorter_side: tuple[int, int] = (256, 480)
    """Least and largest shorter side that the whole image is scaled to."""
    flip: float = 0.5
    """Probability of the mirror image."""
    colour_std: float = 0.1
    """Standard deviation of AlexNet's alpha; 0 leaves the colours alone."""
    min_visible: float = 0.25
    """Share of a box that must be in the crop."""


class Regions(NamedTuple):
    """Section ``regions`` of a localizer's second stage: what it is trained on.

    The proposals are those that section ``test`` makes of the first stage, for the true class of each training image.
    """

    first: str = ""
    """Checkpoint of the first stage; its proposals are written beside it."""
    per_image: int = 1
    """Regions of each image of a batch. The paper's 256 regions are drawn one by one, which is 1 of 256 images; fewer
    images with more regions each decode less."""
    positive_fraction: float = 0.25
    """Share that overlaps an object by 0.5 or more (R-CNN)."""
    flip: float = 0.5
    """Probability of the mirror image."""
    colour_std: float = 0.1
    """Standard deviation of AlexNet's alpha; 0 leaves the colours alone."""


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("loader.batch_size", "loader.test_batch_size", "optimizer.batch_size"), (1, math.inf)),
    **dict.fromkeys(("optimizer.accumulate", "run.log_every", "run.checkpoint_every"), (1, math.inf)),
    **dict.fromkeys(("run.early_stopping", "publish.statistics_images", "regions.per_image"), (1, math.inf)),
    **dict.fromkeys(("crop.flip", "crop.min_visible", "regions.flip", "regions.positive_fraction"), (0, 1)),
    **dict.fromkeys(("schedule.length", "schedule.validate_every"), (0.001, math.inf)),
    **dict.fromkeys(("test.vote", "test.score_threshold", "test.nms_iou"), (0, 1)),
    "test.max_per_image": (1, math.inf),
    "schedule.warmup_factor": (1e-6, 1),
    "optimizer.clip_norm": (1e-6, math.inf),
    **dict.fromkeys(("optimizer.momentum", "schedule.warmup_error"), (0, 1)),
    "run.ema": (0.01, 0.99999),
}
"""Least and greatest value; numbers that are not here may not be negative."""
