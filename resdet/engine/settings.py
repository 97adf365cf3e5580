"""The sections of a config that are plain values: types, ranges, defaults. A key that is not here is an error."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, model_validator

from resdet.errors import InputError, nearest
from resdet.settings import Count, CountOrNone, Fraction, NotNegative, Positive, Settings

OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
"""Every optimizer of torch.optim by its name."""


class Loader(Settings):
    """Section ``loader``: batches and the processes that read them."""

    section: ClassVar[str] = "loader"
    batch_size: Count = 16
    """Images of a training step over all processes together."""
    workers: CountOrNone = 2
    """Loader processes for each training process."""
    test_batch_size: Count = 1
    """Images of a test step in each process."""
    group_aspect: bool = True
    """Keep landscape and portrait images in batches of their own, so that little is padding (detection)."""
    reduce: bool = False
    """Train on large JPEGs decoded at 1/2, 1/4 or 1/8, while no side is shorter than the net's input (detection): a
    fraction of the time for photographs of many megapixels, and a little smoother than what testing sees."""


class Optimizer(Settings):
    """Section ``optimizer``: a class of ``torch.optim`` and its arguments.

    Arguments of that class which are not named here may be given as well, such as ``betas`` of AdamW.
    """

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str] = "optimizer"
    type: str = "SGD"
    """Name of a class of ``torch.optim``."""
    lr: NotNegative = 0.02
    """Learning rate for ``batch_size`` images a step."""
    batch_size: Count = 16
    """The batch that ``lr`` was chosen for; ``--auto-scale-lr`` scales by the one used, accumulation included."""
    momentum: Fraction | None = None
    """Of SGD and RMSprop; None: 0.9 for SGD, the class's own default for others."""
    weight_decay: NotNegative = 1e-4
    norm_weight_decay: NotNegative | None = None
    """Of the scales and shifts of normalization layers; None: the same as of everything else."""
    nesterov: bool = False
    """Nesterov's form of SGD's momentum."""
    clip_norm: Annotated[float, Field(ge=1e-6)] | None = None
    """Bound of the gradient's norm over all parameters."""
    accumulate: Count = 1
    """Steps whose gradients are averaged into one update."""

    @model_validator(mode="after")
    def _check_class(self) -> Optimizer:
        if self.type not in OPTIMIZERS:
            raise InputError("optimizer.type", found=repr(self.type), needed=nearest(self.type, OPTIMIZERS))
        taken = inspect.signature(OPTIMIZERS[self.type]).parameters
        own = {name for name in ("momentum", "nesterov") if getattr(self, name)}
        for name in sorted({*(self.model_extra or {}), *own}):
            if name not in taken:
                known = {*type(self).model_fields, *taken} - {"params", name}
                raise InputError(
                    f"section 'optimizer', type {self.type!r}",
                    found=f"unknown key {name!r}",
                    needed=nearest(name, known),
                )
        if self.nesterov and self.momentum == 0:
            raise InputError("optimizer.nesterov", found="True with momentum 0", needed="a momentum above 0")
        return self

    def arguments(self) -> dict[str, Any]:
        """What the class is called with, besides its parameters and its learning rate."""
        momentum = 0.9 if self.momentum is None and self.type == "SGD" else self.momentum
        said = {"momentum": momentum, "nesterov": self.nesterov or None, "weight_decay": self.weight_decay}
        said |= self.model_extra or {}
        return {name: value for name, value in said.items() if value is not None}


class Schedule(Settings):
    """Section ``schedule``: how long, and the learning rate on the way."""

    section: ClassVar[str] = "schedule"
    length: Annotated[float, Field(ge=0.001)] = 12
    """In ``unit``."""
    unit: Literal["epoch", "step"] = "epoch"
    least_steps: CountOrNone = 0
    """Of a run: a set so small that ``length`` has fewer is gone through more often, and everything that is in
    ``unit`` is stretched by as much."""
    policy: Literal["step", "cosine", "linear", "poly", "exponential", "onecycle"] = "step"
    """How the rate falls after the warm-up: by ``gamma`` at the milestones, or all along to ``final_factor``; the
    exponential by ``gamma`` over the whole length. ``onecycle`` rises to the rate and falls again (Smith 2018)."""
    milestones: tuple[NotNegative, ...] = ()
    """In ``unit``: where the rate is multiplied by ``gamma``."""
    gamma: Positive = 0.1
    power: Positive = 0.9
    """Of the polynomial."""
    final_factor: Fraction = 0.0
    """Share of the rate at the end of ``cosine``, ``linear`` and ``poly``."""
    warmup_steps: CountOrNone = 0
    """Linear warm-up over the first steps."""
    warmup_factor: Annotated[float, Field(ge=1e-6, le=1)] = 0.001
    """Share of the rate that the warm-up starts from."""
    warmup_error: Fraction | None = None
    """Classification: hold that share until the training error is below this (ResNet-110: 0.8), at most for
    ``warmup_steps``; the warm-up is then no ramp."""
    validate_every: Annotated[float, Field(ge=0.001)] = 1
    """In ``unit``."""
    validate_last: bool = True
    """Validate after the last step, too."""


class Run(Settings):
    """Section ``run``: seed, precision, files and what is looked at on the way."""

    section: ClassVar[str] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Autocast; fp16 needs a GPU."""
    log_every: Count = 50
    """Steps."""
    checkpoint_every: Count = 1000
    """Steps between two writings of last.pth (it is also written at each validation and at the end)."""
    ema: Annotated[float, Field(ge=0.01, le=0.99999)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is tested and saved."""
    early_stopping: Count | None = None
    """Validations without a better score after which training stops."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the net in training (:mod:`resdet.engine.compiled`); needs a C++ compiler, and pays on a GPU."""
    winograd: bool = False
    """3x3 convolutions of stride 1 and at least 128 channels in training by Winograd's algorithm
    (:mod:`resdet.cpu.winograd`): on a CPU and in float32, gradients equal to about 1e-5 of the largest."""
    tensorboard: bool = False
    """Curves for TensorBoard; the same as section ``visualizer`` with mmengine's TensorboardVisBackend."""
    threads: Count | None = None
    """Of torch in each process; None: ``OMP_NUM_THREADS``, else the tools take the CPUs that are left
    (:mod:`resdet.cpu.threads`)."""
    start_timeout: Count = 60
    """Seconds that several processes wait for each other at the start."""
    sync_check: bool = False
    """Look at each loss at once instead of one step later: slower on a GPU, for hunting a NaN."""

    @model_validator(mode="after")
    def _check_winograd(self) -> Run:
        for name in ("amp", "compile"):
            if self.winograd and getattr(self, name) != "off":
                found = f"True with run.{name}={getattr(self, name)}"
                raise InputError("run.winograd", found=found, needed=f"one of them alone: it is skipped under {name}")
        return self


class Publish(Settings):
    """Section ``publish``: what the classification tool does at its end."""

    section: ClassVar[str] = "publish"
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint becomes the published backbone; the best one is chosen on the test data."""
    statistics_images: Count | None = 10_000
    """Training images over which BN statistics are computed; None takes all."""
    half: bool = False
    """Weights of convolutions and linear layers as 16-bit floats: half the file. The test is of the rounded ones."""


class ClassifierTest(Settings):
    """Section ``test`` of a classification config.

    The views of an image (10 crops, several scales) are made by the data: ``test_data.crops``, ``test_data.dense``.
    """

    section: ClassVar[str] = "test"
    ensemble: tuple[str, ...] = ()
    """Checkpoints of further nets for the same classes; probabilities are averaged."""
    flip: bool = False
    """Average with the mirror image."""


class Crop(Settings):
    """Section ``crop`` of a localizer's first stage: the crops that it is trained on, as large as its model says.

    See :class:`resdet.datasets.loc_view.LocalizationCrop`.
    """

    section: ClassVar[str] = "crop"
    shorter_side: tuple[int, int] = (256, 480)
    """Least and largest shorter side that the whole image is scaled to."""
    flip: Fraction = 0.5
    """Probability of the mirror image."""
    colour_std: NotNegative = 0.1
    """Standard deviation of AlexNet's alpha; 0 leaves the colours alone."""
    min_visible: Fraction = 0.25
    """Share of a box that must be in the crop."""


class Regions(Settings):
    """Section ``regions`` of a localizer's second stage: what it is trained on.

    The proposals are those that section ``test`` makes of the first stage, for the true class of each training image.
    """

    section: ClassVar[str] = "regions"
    first: str = ""
    """Checkpoint of the first stage; its proposals are written beside it."""
    per_image: Count = 1
    """Regions of each image of a batch. The paper's 256 regions are drawn one by one, which is 1 of 256 images; fewer
    images with more regions each decode less."""
    positive_fraction: Fraction = 0.25
    """Share that overlaps an object by 0.5 or more (R-CNN)."""
    flip: Fraction = 0.5
    """Probability of the mirror image."""
    colour_std: NotNegative = 0.1
    """Standard deviation of AlexNet's alpha; 0 leaves the colours alone."""


class Values(Settings):
    """The sections of a config that are one value."""

    task: str = ""
    """detection, classification or localization."""
    metric: str = ""
    """coco, voc07, voc12, classification or localization."""
    augmentation: tuple[str | dict[str, Any], ...] = ("flip",)
    """Of detection samples, in order: short names, or albumentations' transforms as ``dict(type=NAME, ...)``."""
    load_from: str | None = None
    """A trained checkpoint to start from; the layers of its classes are taken over where the classes are the same."""
    custom_hooks: tuple[dict[str, Any], ...] = ()
    """mmengine hooks, ``dict(type=..., ...)``."""
    visualizer: dict[str, Any] | None = None
    """``dict(vis_backends=[dict(type="WandbVisBackend"), ...])``, as mmengine's Runner takes it."""

    def by_name(self) -> dict[str, Any]:
        """Name to value."""
        return {name: getattr(self, name) for name in type(self).model_fields}
