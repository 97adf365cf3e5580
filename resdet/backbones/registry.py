"""Backbones by name: ours (Table 1 and section 4.2), one's own, and those of timm and torchvision.

Names: ``resnet18`` .. ``resnet152`` stride on the 3x3 convolution ("v1.5"); ``resnet50-1x1``, ``resnet101-1x1`` and
``resnet152-1x1`` on the first 1x1, as the paper's own ("Caffe style") nets do. ``-A`` and ``-C`` are their other
shortcuts, ``plain18`` and ``plain34`` have none, ``resnext101_32x8d`` and its like have 3x3 convolutions in groups,
``cifar-...`` is told in :mod:`resdet.backbones.resnet_cifar`, and ``vgg16`` and ``vgg16-bn`` are no residual nets at
all (:mod:`resdet.backbones.vgg`).
``timm/<model>`` and ``torchvision/<model>`` are those libraries' nets: residual ones for every detector, and any of
timm's that gives maps at strides 4, 8, 16 and 32 (:mod:`resdet.backbones.levels`) for the pyramid::

    net = BACKBONES.build("resnet50", num_classes=20)
    BACKBONES["resnet50"].channels  # (256, 512, 1024, 2048)

    @BACKBONES.register("mine", channels=(64, 128, 256, 512))
    def mine(num_classes: int) -> nn.Module: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from resdet.backbones import resnet_cifar, vgg
from resdet.backbones.blocks import Bottleneck
from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.families import family_of
from resdet.backbones.libraries import LIBRARIES
from resdet.backbones.resnet import (
    STRIDES,
    WIDTHS,
    preresnet200,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext,
    zero_init_residual,
)
from resdet.backbones.stochastic_depth import stochastic_depth
from resdet.errors import InputError, nearest

Builder = Callable[[int], nn.Module]
"""``builder(num_classes)`` -> a net that its :class:`resdet.backbones.families.Family` takes."""


@dataclass(frozen=True)
class Backbone:
    """What is declared about a backbone; ``None`` where nobody declared it."""

    builder: Builder
    channels: tuple[int, ...]
    """Of C2 .. C5."""
    strides: tuple[int, ...] = STRIDES
    """Of C2 .. C5, in input pixels."""
    parameters: int | None = None
    """With ``classes`` classes."""
    multiply_adds: int | None = None
    """Of one image of ``image_side``, with ``classes`` classes: convolutions and linear layers."""
    paper_row: str | None = None
    """Column of Table 1."""
    weights: tuple[str, ...] = ()
    """Library nets of the same function, whose weights load exactly."""
    image_side: int = 224
    """Pixels of the images that the net is made for. Nets for 32 are no backbones of detectors."""
    classes: int = 1000
    """Of the data set that the net is made for."""


class Backbones(Mapping[str, Backbone]):
    """A mapping from names to :class:`Backbone`; iteration gives the registered names, not the libraries'."""

    def __init__(self) -> None:
        self._entries: dict[str, Backbone] = {}

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self._entries)

    def __getitem__(self, name: str) -> Backbone:
        """The entry of a name.

        Raises:
            InputError: nobody knows the name, or the library's net is not of the ResNet shape.
        """
        library, _, model = name.partition("/")
        if library in LIBRARIES and model:
            return _library_entry(library, model)
        if name not in self._entries and (net := resnet_cifar.parse_name(name)):
            return _cifar_entry(name, net)
        if name not in self._entries:
            needed = nearest(name, self._entries) + "; or timm/<model>, torchvision/<model>"
            raise InputError("backbone name", found=repr(name), needed=needed)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def build(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        zero_last_bn: bool = False,
        survival: float = 1.0,
        checkpoint: bool = False,
    ) -> nn.Module:
        """A classification net with random weights.

        Args:
            name: of the registry, or of a library.
            num_classes: K, the length of the logits; ``None``: that of the data set which the net is made for.
            zero_last_bn: start every block as the identity (:func:`resdet.backbones.resnet.zero_init_residual`).
            survival: p_L of :func:`resdet.backbones.stochastic_depth.stochastic_depth`; 1 is off.
            checkpoint: save memory in training (:func:`resdet.backbones.checkpointing.checkpoint_blocks`).

        Raises:
            InputError: unknown name, not a residual net, or one that an option does not fit.
        """
        entry = self[name]
        net = entry.builder(entry.classes if num_classes is None else num_classes)
        if zero_last_bn:
            zero_init_residual(net)
        stochastic_depth(net, survival)
        return checkpoint_blocks(net) if checkpoint else net

    def register(
        self,
        name: str,
        builder: Builder | None = None,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...] = STRIDES,
        parameters: int | None = None,
        multiply_adds: int | None = None,
    ) -> Callable[[Builder], Builder] | Builder:
        """Add a backbone, by a call with ``builder`` or as a decorator of it.

        Args:
            name: free, without a slash.
            builder: ``builder(num_classes)``.
            channels: of C2 .. C5.
            strides: of C2 .. C5.
            parameters: with 1000 classes, if known.
            multiply_adds: at 224x224, if known.

        Raises:
            InputError: the name is taken or has a slash.
        """
        if builder is None:
            return lambda function: self.register(
                name, function, channels=channels, strides=strides, parameters=parameters, multiply_adds=multiply_adds
            )
        self.add(name, Backbone(builder, channels, strides, parameters, multiply_adds))
        return builder

    def add(self, name: str, entry: Backbone) -> None:
        """Add a backbone with all that is declared of it.

        Raises:
            InputError: the name is taken or has a slash.
        """
        if name in self._entries or "/" in name:
            needed = "a name not taken yet" if name in self._entries else "a name without a slash"
            raise InputError("BACKBONES.register", found=repr(name), needed=needed)
        self._entries[name] = entry


@cache
def _library_entry(library: str, model: str) -> Backbone:
    build, models, examples = LIBRARIES[library]
    known = models()
    if model.partition(".")[0] not in known:  # timm's names may end in a tag of the weights: resnet50.a1_in1k
        raise InputError(
            f"backbone name '{library}/{model}'", found=f"no such model in {library}", needed=nearest(model, known)
        )
    with torch.device("meta"):  # facts without weights
        net = build(model, 1000)
    parameters = sum(p.numel() for p in net.parameters())
    trunk = family_of(net, f"backbone '{library}/{model}' (of {library}, {examples} work, among others)").pyramid()
    return Backbone(partial(build, model), trunk.channels, trunk.strides, parameters)


def _cifar_entry(name: str, net: resnet_cifar.CifarNet) -> Backbone:
    parameters, multiply_adds = resnet_cifar.FACTS.get(name, (None, None))
    side, strides = resnet_cifar.SIDE, resnet_cifar.STRIDES
    return Backbone(net, net.channels, strides, parameters, multiply_adds, image_side=side, classes=10)


BACKBONES = Backbones()

_A, _C, _PLAIN, _CAFFE = {"shortcut": "A"}, {"shortcut": "C"}, {"shortcut": "none"}, {"stride_on": "1x1"}

# Parameters as the paper's nets have them with BN's scale and shift; multiply-adds counted by torch's FlopCounterMode.
for _name, _builder, _parameters, _multiply_adds in (
    ("resnet18", resnet18, 11_689_512, 1_814_073_344),
    ("resnet34", resnet34, 21_797_672, 3_663_761_408),
    ("resnet50", resnet50, 25_557_032, 4_089_184_256),
    ("resnet101", resnet101, 44_549_160, 7_801_405_440),
    ("resnet152", resnet152, 60_192_808, 11_513_626_624),
    ("resnet50-1x1", partial(resnet50, **_CAFFE), 25_557_032, 3_857_973_248),
    ("resnet101-1x1", partial(resnet101, **_CAFFE), 44_549_160, 7_570_194_432),
    ("resnet152-1x1", partial(resnet152, **_CAFFE), 60_192_808, 11_282_415_616),
    ("resnet18-A", partial(resnet18, **_A), 11_515_688, 1_794_805_760),
    ("resnet18-C", partial(resnet18, **_C), 12_043_816, 1_878_298_624),
    ("resnet34-A", partial(resnet34, **_A), 21_623_848, 3_644_493_824),
    ("resnet34-C", partial(resnet34, **_C), 22_716_840, 3_830_747_136),
    ("resnet50-A", partial(resnet50, **_A), 22_780_456, 3_729_522_688),
    ("resnet50-C", partial(resnet50, **_C), 40_128_552, 6_555_435_008),
    ("resnet101-A", partial(resnet101, **_A), 41_772_584, 7_441_743_872),
    ("resnet101-C", partial(resnet101, **_C), 76_981_288, 13_761_511_424),
    ("resnet152-A", partial(resnet152, **_A), 57_416_232, 11_153_965_056),
    ("resnet152-C", partial(resnet152, **_C), 107_335_720, 20_967_587_840),
    ("plain18", partial(resnet18, **_PLAIN), 11_515_688, 1_794_805_760),
    ("plain34", partial(resnet34, **_PLAIN), 21_623_848, 3_644_493_824),
    ("preresnet200", preresnet200, 64_666_152, 15_007_481_856),
):
    _depth = int("".join(filter(str.isdigit, _name.partition("-")[0])))
    _entry = Backbone(
        _builder,
        channels=WIDTHS if _depth < 50 else tuple(width * Bottleneck.expansion for width in WIDTHS),
        parameters=_parameters,
        multiply_adds=_multiply_adds,
        paper_row=f"{_depth}-layer" if _depth < 200 else None,
        weights=() if not _name.removeprefix("resnet").isdigit() else (f"torchvision/{_name}", f"timm/{_name}"),
    )
    BACKBONES.add(_name, _entry)

for _name, _depths, _numbers, _parameters, _multiply_adds in (
    ("resnext50_32x4d", (3, 4, 6, 3), (32, 4), 25_028_904, 4_230_479_872),
    ("resnext101_32x4d", (3, 4, 23, 3), (32, 4), 44_177_704, 7_969_996_800),
    ("resnext101_32x8d", (3, 4, 23, 3), (32, 8), 88_791_336, 16_414_015_488),
    ("resnext101_64x4d", (3, 4, 23, 3), (64, 4), 83_455_272, 15_460_270_080),
):
    _builder = partial(resnext, _depths, groups=_numbers[0], width_per_group=_numbers[1])
    _libraries = ("timm",) if _name == "resnext101_32x4d" else ("torchvision", "timm")
    _entry = Backbone(
        _builder,
        channels=tuple(width * Bottleneck.expansion for width in WIDTHS),
        parameters=_parameters,
        multiply_adds=_multiply_adds,
        weights=tuple(f"{library}/{_name}" for library in _libraries),
    )
    BACKBONES.add(_name, _entry)


# At half the width, a quarter of the work: for demos and CPUs. Not in the paper.
_HALF = {"widths": tuple(width // 2 for width in WIDTHS)}
for _name, _numbers, _parameters, _multiply_adds in (
    ("resnet18-half", _HALF, 3_055_880, 483_149_824),
    ("plain18-half", _HALF | _PLAIN, 3_011_976, 478_332_928),
):
    _builder = partial(resnet18, **_numbers)
    BACKBONES.add(_name, Backbone(_builder, _HALF["widths"], parameters=_parameters, multiply_adds=_multiply_adds))


for _name, _builder, _parameters in (("vgg16", vgg.vgg16, 138_357_544), ("vgg16-bn", vgg.vgg16_bn, 138_365_992)):
    _entry = Backbone(_builder, vgg.CHANNELS, vgg.STRIDES, _parameters, multiply_adds=15_470_264_320)
    BACKBONES.add(_name, _entry)

for _name in resnet_cifar.FACTS:
    BACKBONES.add(_name, BACKBONES[_name])
