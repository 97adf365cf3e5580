"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray 2015).

A tile of 4x4 outputs sees 6x6 inputs. Both are carried to 36 numbers by small constant matrices; there the convolution
is a product number by number, and over the channels that is a matrix product for each of the 36. Everything is a matrix
product of torch's, so there is nothing to compile. Rounding grows: features differ by about 1e-5 of their largest value
after one layer and 1e-4 after a whole net, which is why this is off unless asked for. On a GPU cuDNN does the like by
itself.

At inference wide convolutions are replaced (:func:`use_winograd`). In training they stay what they are and are marked
(:func:`train_by_winograd`); :func:`resdet.cpu.weight_gradient.convolve` does what marks ask for. The gradient of the
input is a convolution with the filter turned by 180 degrees, and that of the weight is the same product transposed,
36 matrices of K x C summed over all tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 256
"""With fewer, the two changes of basis cost what the product saves (measured on a CPU with AVX-512)."""
LEAST_CHANNELS_IN_TRAINING = 128
"""Likewise; the gradients gain more than the forward pass."""
LEAST_TILES = 64
"""See :func:`pays`."""
CHUNK = 512
"""Tiles at a time, so that their numbers stay in the cache."""

INPUT = (  # B transposed, of the paper's section 4.3
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FILTER = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = (  # A transposed
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv(nn.Module):
    """What a 3x3 ``nn.Conv2d`` of stride 1 and padding 1 gives, up to rounding.

    Args:
        conv: it; its weights are copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = _transformed(conv.weight.detach().double()).to(conv.weight.dtype)
        self.register_buffer("weight", weight.contiguous())  # (36, C, K)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W), in channels-last memory; in the weights' dtype, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):  # the changes of basis cancel large numbers
            return _convolve(x.to(self.weight.dtype), self.weight, self.bias)


def use_winograd(module: nn.Module) -> nn.Module:
    """Every wide 3x3 convolution as a :class:`WinogradConv`.

    Args:
        module: changed in place, for inference only; after :func:`resdet.cpu.folding.fold_batchnorm`, as a
            :class:`resdet.backbones.frozen.FrozenBatchNorm` is folded into an ``nn.Conv2d`` alone.

    Returns:
        The module.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if _fits(child, LEAST_CHANNELS):
                setattr(parent, name, WinogradConv(child))
    return module


def train_by_winograd(module: nn.Module) -> int:
    """Mark every 3x3 convolution that training is to compute so; parameters and their names stay.

    Args:
        module: changed in place.

    Returns:
        How many are marked: none of the nets of timm and torchvision, which call their convolutions themselves.
    """
    marked = [child for child in _handed_over(module) if _fits(child, LEAST_CHANNELS_IN_TRAINING)]
    for conv in marked:
        conv.winograd = True
    return len(marked)


def _handed_over(module: nn.Module) -> Iterator[nn.Module]:
    """Layers that modules of ours give to :func:`resdet.cpu.weight_gradient.convolve`, as no ``nn.Sequential`` does."""
    for parent in module.modules():
        if type(parent).__module__.startswith("resdet."):
            for child in parent.children():
                yield from child if isinstance(child, nn.ModuleList) else (child,)


def is_marked(conv: nn.Module) -> bool:
    """Whether :func:`train_by_winograd` has marked it."""
    return getattr(conv, "winograd", False)


def pays(shape: Sequence[int]) -> bool:
    """Whether an (N, C, H, W) map is large enough: the weights' change of basis costs what some tiles cost."""
    images, _, height, width = shape
    return images * -(-height // 4) * -(-width // 4) >= LEAST_TILES


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` up to rounding, without derivatives.

    Args:
        x: (N, C, H, W).
        weight: (K, C, 3, 3).
        bias: (K,).

    Returns:
        (N, K, H, W), in channels-last memory.
    """
    return _convolve(x, _transformed(weight), bias)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Of :func:`convolve`: the (N, K, H, W) gradient of the output and the weight to (N, C, H, W)."""
    return _convolve(gradient, _transformed(weight.flip(2, 3).transpose(0, 1)), None)


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Of :func:`convolve`: (N, C, H, W) input and (N, K, H, W) gradient to (K, C, 3, 3), in channels-last memory."""
    inputs, outputs = _tiles(x, size=6, border=1), _tiles(gradient, size=4, border=0)
    total = x.new_zeros(36, gradient.shape[1], x.shape[1])
    before, after, of_weight = (_basis(m, x.dtype, x.device) for m in (INPUT, OUTPUT, FILTER))
    for some in _parts(inputs.shape[2:5]):
        changed = (before @ inputs[some].reshape(36, -1)).view(36, -1, x.shape[1])
        changed_outputs = (after.T @ outputs[some].reshape(16, -1)).view(36, -1, gradient.shape[1])
        total.baddbmm_(changed_outputs.transpose(1, 2), changed)
    answer = (of_weight.T @ total.view(36, -1)).view(3, 3, gradient.shape[1], x.shape[1])
    return answer.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _transformed(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (36, C, K)."""
    out_channels, channels = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_basis(FILTER, weight.dtype, weight.device) @ flat).view(36, channels, out_channels)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) and (36, C, K) to (N, K, H, W)."""
    (images, channels, height, width), out_channels = x.shape, weight.shape[2]
    tiles = _tiles(x, size=6, border=1)
    down, across = tiles.shape[3:5]
    before, after = (_basis(matrix, x.dtype, x.device) for matrix in (INPUT, OUTPUT))
    shape = (images, out_channels, 4 * down, 4 * across)
    answer = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    by_tiles = answer.permute(0, 2, 3, 1).view(images, down, 4, across, 4, out_channels)
    for some in _parts(tiles.shape[2:5]):
        part = tiles[some]
        changed = (before @ part.reshape(36, -1)).view(36, -1, channels)
        product = torch.bmm(changed, weight)  # (36, tiles, K)
        outputs = (after @ product.view(36, -1)).view(4, 4, *part.shape[2:5], out_channels)
        if bias is not None:
            outputs.add_(bias)
        by_tiles[some[2:]] = outputs.permute(2, 3, 0, 4, 1, 5)
    if shape[2:] == (height, width):
        return answer  # no view: what follows may change it in place
    return answer[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _tiles(x: Tensor, *, size: int, border: int) -> Tensor:
    """(N, C, H, W) to (size, size, N, down, across, C), a view of the padded maps; tiles start at each fourth cell."""
    images, channels, height, width = x.shape
    down, across = -(-height // 4), -(-width // 4)
    beyond = [4 * down - height + border, 4 * across - width + border]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, border, beyond[1], border, beyond[0]))
    image, row, column, channel = padded.stride()
    strides = (row, column, image, 4 * row, 4 * column, channel)
    return padded.as_strided((size, size, images, down, across, channels), strides)


def _parts(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Of (N, down, across) tiles: whole images, or rows of tiles of one; as an index of (size, size, N, down, ...)."""
    images, down, across = shape
    at_once = max(1, CHUNK // (down * across))
    rows = down if at_once > 1 else max(1, CHUNK // across)
    for i in range(0, images, at_once):
        for j in range(0, down, rows):
            yield slice(None), slice(None), slice(i, i + at_once), slice(j, j + rows)


def _fits(module: nn.Module, least_channels: int) -> bool:
    if type(module) is not nn.Conv2d or min(module.in_channels, module.out_channels) < least_channels:
        return False
    found = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return found == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


@lru_cache(maxsize=16)
def _basis(matrix: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A change of basis along one axis, as one along rows and columns of a flattened tile."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).to(dtype=dtype, device=device)
