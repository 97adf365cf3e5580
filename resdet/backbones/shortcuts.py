"""What goes round the residual branch: options A, B and C, none at all, and the variants of later studies.

The options are those of He et al. 2015, section 3.3. The variants change every shortcut of a net, and all but Highway's
were found worse than the identity (He et al. 2016, "Identity mappings in deep residual networks", section 3.1 and
Table 1; its "1x1 conv shortcut" is option C). Where the size changes they start from option A, as its CIFAR nets do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.cpu.folding import conv_norm
from resdet.errors import InputError, nearest

SHORTCUTS = {
    "A": "identity; where the size changes, strided and padded with zero channels: no parameters",
    "B": "identity; where the size changes, a 1x1 convolution",
    "C": "a 1x1 convolution everywhere",
    "none": "no shortcut: the plain net",
    "scaling": "0.5 x + 0.5 F(x)",
    "shortcut-scaling": "0.5 x + F(x)",
    "exclusive-gate": "(1 - g(x)) x + g(x) F(x), g a 1x1 convolution and a sigmoid",
    "shortcut-gate": "(1 - g(x)) x + F(x)",
    "dropout": "x with half its values dropped, + F(x)",
    "highway": "as exclusive-gate, the gate being a 3x3 convolution (Srivastava et al. 2015, Highway networks)",
}
"""The names that ``shortcut=`` takes."""
SCALE = 0.5  # of scaling, and of dropout: He et al. 2016, Table 1
GATES = {"exclusive-gate": (1, -6.0), "shortcut-gate": (1, -6.0), "highway": (3, -3.0)}
"""(kernel, initial bias) of gates: the best bias of He et al. 2016, Table 1; Highway's section 2.2 names -1 and -3."""


def conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution as the paper's nets use it: "same" padding, no bias (BN follows)."""
    padding = kernel // 2
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)


def shortcut(
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    batchnorm: bool = True,
    gate_bias: float | None = None,
) -> nn.Module:
    """The path beside the residual branch: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride).

    Args:
        kind: of :data:`SHORTCUTS`.
        in_channels: of the block.
        out_channels: of the block.
        stride: of the block.
        batchnorm: after a projection; pre-activation blocks have none there.
        gate_bias: initial bias of a gate; None: the best of He et al. 2016, -6, and -3 for Highway's.

    Raises:
        InputError: unknown kind; option A with fewer channels out than in; a bias without a gate.
    """
    if kind not in SHORTCUTS:
        raise InputError("shortcut", found=repr(kind), needed=nearest(kind, SHORTCUTS))
    if gate_bias is not None and kind not in GATES:
        raise InputError("gate_bias", found=f"{gate_bias} with shortcut={kind!r}", needed=f"one of {', '.join(GATES)}")
    changes = stride != 1 or in_channels != out_channels
    if kind == "none":
        return Absent()
    if kind == "C" or (kind == "B" and changes):
        projection = conv(in_channels, out_channels, 1, stride=stride)
        return Projection(projection, nn.BatchNorm2d(out_channels)) if batchnorm else nn.Sequential(projection)
    identity = ZeroPadding(in_channels, out_channels, stride=stride) if changes else nn.Identity()
    if kind in ("scaling", "shortcut-scaling"):
        return nn.Sequential(identity, Scale(SCALE))
    if kind == "dropout":
        return nn.Sequential(identity, nn.Dropout(SCALE))
    if kind == "shortcut-gate":
        return GatedShortcut(identity, gate(kind, in_channels, out_channels, stride=stride, bias=gate_bias))
    return identity


def join(
    kind: str, in_channels: int, out_channels: int, *, stride: int, gate_bias: float | None = None
) -> nn.Module | None:
    """How a block adds, called as ``join(x, residual, shortcut_of_x)``; ``None`` is the plain sum."""
    if kind == "scaling":
        return ScaledSum(SCALE)
    if kind in ("exclusive-gate", "highway"):
        return GatedSum(gate(kind, in_channels, out_channels, stride=stride, bias=gate_bias))
    return None


def gate(kind: str, in_channels: int, out_channels: int, *, stride: int, bias: float | None = None) -> nn.Module:
    """A convolution and a sigmoid, nearly closed at first so that x passes: the lower the bias, the more."""
    kernel, usual = GATES[kind]
    bias = usual if bias is None else bias
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
    nn.init.constant_(layer.bias, bias)
    return nn.Sequential(layer, nn.Sigmoid())


class Projection(nn.Sequential):
    """Options B and C: a 1x1 convolution and its BN."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return conv_norm(x, *self)


class ZeroPadding(nn.Module):
    """Option A where the size changes: every ``stride``-th pixel between zero channels, half of them on either side.

    The paper does not say on which side; the CIFAR weights most in use have half on either.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            needed = f"at least {in_channels} channels, or shortcut B or C"
            raise InputError("shortcut A", found=f"{in_channels} channels in, {out_channels} out", needed=needed)
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Absent(nn.Module):
    """The shortcut of a plain net: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """A zero without dimensions."""
        return x.new_zeros(())


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``factor * x``."""
        return self.factor * x


class GatedShortcut(nn.Module):
    """(1 - g(x)) x: the residual stays whole."""

    def __init__(self, identity: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.identity, self.gate = identity, gate

    def forward(self, x: Tensor) -> Tensor:
        """As the block's shortcut."""
        return (1 - self.gate(x)) * self.identity(x)


class ScaledSum(nn.Module):
    """``factor * F(x)`` and a shortcut scaled by itself."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, residual: Callable[[Tensor], Tensor], shortcut: Tensor) -> Tensor:
        """The sum of both paths."""
        return self.factor * residual(x) + shortcut


class GatedSum(nn.Module):
    """g(x) F(x) + (1 - g(x)) x."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor, residual: Callable[[Tensor], Tensor], shortcut: Tensor) -> Tensor:
        """The gated sum of both paths."""
        return torch.lerp(shortcut, residual(x), self.gate(x))
