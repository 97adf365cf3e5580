"""A classification net as the feature extractor of a detector: C2 .. C5, the C4 split, frozen stages.

Appendix A shares conv1 .. conv4_x between RPN and detector and gives conv5_x to each region; FPN takes C2 .. C5.
Which extractor a net of the registry has is told by its family (:mod:`resdet.backbones.families`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.resnet import STRIDES
from resdet.cpu.folding import conv_norm
from resdet.errors import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")


class FeatureExtractor(nn.Module):
    """What detectors ask of a backbone: one map per stage, finest first.

    Attributes:
        channels: of the maps.
        strides: of the maps, in input pixels.
        groups: names of the modules of the stem, then of each stage: the order in which they freeze.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps; map i is (N, channels[i], H / strides[i], W / strides[i]), rounded as the net does."""
        raise NotImplementedError

    def check_declared(self, net: str) -> None:
        """Compare the declared channels and strides with one pass on the meta device (shapes only, no arithmetic).

        Raises:
            InputError: the maps are others.
        """
        side = 64
        meta = {n: torch.empty_like(t, device="meta") for n, t in (*self.named_parameters(), *self.named_buffers())}
        images = torch.empty(2, 3, side, side, device="meta")  # BN in train mode wants two
        found = [tuple(m.shape[1:]) for m in functional_call(self, meta, (images,))]
        needed = [(c, side // s, side // s) for c, s in zip(self.channels, self.strides, strict=True)]
        if found != needed:
            raise InputError(f"{net}: maps (channels, H, W) of a {side}x{side} image", found=found, needed=needed)


class Trunk(FeatureExtractor):
    """The convolutional part of a residual net, returning one map per stage.

    Takes ours, torchvision's ResNet family and timm's (deep stems and attention included): any net with ``conv1``,
    ``bn1``, ``relu`` or ``act1``, ``maxpool`` and ``layer1`` .. ``layer4``. Modules are shared with ``net``, and
    parameters keep their names.

    Args:
        net: the classification net.
        last: 2..5, the last map wanted, as in "C4"; later stages are left out.

    Attributes:
        channels: of C2 .. C_last.
        strides: of C2 .. C_last, in input pixels.

    Raises:
        InputError: the net has another shape, or its maps are not what it declares.
    """

    def __init__(self, net: nn.Module, *, last: int = 5) -> None:
        super().__init__()
        if last not in range(2, 6):
            raise InputError("Trunk(last=...)", found=last, needed="2, 3, 4 or 5: the number of conv2_x .. conv5_x")
        check_residual(net, where=f"Trunk({type(net).__name__})")
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.relu = net.relu if hasattr(net, "relu") else net.act1
        self.stages = STAGES[: last - 1]
        self.groups = (("conv1", "bn1", "maxpool"), *((name,) for name in self.stages))
        for name in self.stages:
            self.add_module(name, getattr(net, name))
        self.channels = stage_channels(net)[: last - 1]
        self.strides = stage_strides(net)[: last - 1]
        self.check_declared(type(net).__name__)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> C2 .. C_last; map i is (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        x = self.maxpool(self.relu(conv_norm(images, self.conv1, self.bn1)))
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps


def check_residual(net: nn.Module, *, where: str) -> None:
    """Refuse a net that is not of the ResNet shape.

    Raises:
        InputError: names the attributes that ``net`` lacks, or why one of ours does not serve.
    """
    if reason := getattr(net, "unfit_for_trunk", None):
        needed = "a net with the ImageNet or deep stem, four stages, and activations after the additions"
        raise InputError(where, found=f"{type(net).__name__} with {reason}", needed=needed)
    if lacks := _lacks(net):
        needed = "a residual net with conv1, bn1, relu or act1, maxpool, layer1 .. layer4"
        raise InputError(where, found=f"{type(net).__name__} without {', '.join(lacks)}", needed=needed)


def is_residual(net: nn.Module) -> bool:
    """Whether :func:`check_residual` would let it pass."""
    return getattr(net, "unfit_for_trunk", None) is None and not _lacks(net)


def _lacks(net: nn.Module) -> list[str]:
    lacks = [name for name in ("conv1", "bn1", "maxpool", *STAGES) if not hasattr(net, name)]
    return lacks if hasattr(net, "relu") or hasattr(net, "act1") else [*lacks, "relu or act1"]


def stage_channels(net: nn.Module) -> tuple[int, ...]:
    """Channels of C2 .. C5: declared (``channels``, timm's ``feature_info``) or those of each stage's last BN."""
    if hasattr(net, "channels"):
        return tuple(net.channels)
    if hasattr(net, "feature_info"):
        return tuple(info["num_chs"] for info in net.feature_info[-4:])
    last_blocks = [getattr(net, name)[-1] for name in STAGES]
    return tuple((b.bn3 if hasattr(b, "bn3") else b.bn2).weight.numel() for b in last_blocks)


def stage_strides(net: nn.Module) -> tuple[int, ...]:
    """Strides of C2 .. C5: declared (``strides``, timm's ``feature_info``) or the usual 4, 8, 16, 32."""
    if hasattr(net, "strides"):
        return tuple(net.strides)
    if hasattr(net, "feature_info"):
        return tuple(info["reduction"] for info in net.feature_info[-4:])
    return STRIDES


def conv5_head(net: nn.Module) -> nn.Module:
    """conv5_x, which the C4 detector runs on each pooled region (appendix A); gives ``stage_channels(net)[-1]``."""
    check_residual(net, where=f"conv5_head({type(net).__name__})")
    return net.layer4


def take_stride(stage: nn.Module) -> int:
    """The stride of a stage whose first block strides on 1x1 convolutions alone, taken off it.

    Such a block reads every second cell and never the others, so whoever makes its input need not make those: the
    stage, changed in place, does on every second cell what it did on all. Of any other stage the stride stays.

    Returns:
        The stride taken, 1 if none.
    """
    block = stage[0]
    beside = getattr(block, "downsample", None)
    readers = [getattr(block, "conv1", None), beside[0] if isinstance(beside, nn.Sequential) else None]
    if not all(type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) for conv in readers):
        return 1
    if len({conv.stride for conv in readers}) > 1:
        return 1
    stride = readers[0].stride[0]
    for conv in readers:
        conv.stride = (1, 1)
    return stride


def freeze_stages(trunk: FeatureExtractor, count: int) -> FeatureExtractor:
    """Stop the first stages from learning; their BN becomes :class:`FrozenBatchNorm`, or it would go on adapting.

    Args:
        trunk: changed in place.
        count: 0 none, 1 the stem, 2 stem and conv2_x, up to the trunk's last stage (detectron2's ``FREEZE_AT``; of a
            VGG, where Faster R-CNN trains "conv3_1 and up", the groups of convolutions).

    Returns:
        The trunk.

    Raises:
        InputError: the trunk has fewer stages.
    """
    if count not in range(len(trunk.groups) + 1):
        raise InputError("freeze_stages(count=...)", found=count, needed=f"0..{len(trunk.groups)} for this trunk")
    for name in (name for group in trunk.groups[:count] for name in group):
        trunk.set_submodule(name, freeze_batchnorm(trunk.get_submodule(name)).requires_grad_(False))
    return trunk
