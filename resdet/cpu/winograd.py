"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray 2015), for inference.

A tile of 4x4 outputs sees 6x6 inputs. Both are carried to 36 numbers by small constant matrices; there the convolution
is a product number by number, and over the channels that is a matrix product for each of the 36. Everything is a matrix
product of torch's, so there is nothing to compile. Rounding grows: features differ by about 1e-5 of their largest value
after one layer and 1e-4 after a whole net, which is why this is off unless asked for. On a GPU cuDNN does the like by
itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 256
"""With fewer, the two changes of basis cost what the product saves (measured on a CPU with AVX-512)."""
CHUNK = 256
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
        like = {"dtype": conv.weight.dtype, "device": conv.weight.device}
        basis = torch.tensor(FILTER, dtype=torch.float64, device=conv.weight.device)
        weight = torch.einsum("ia,jb,kcab->ijck", basis, basis, conv.weight.detach().double()).flatten(0, 1)
        self.register_buffer("weight", weight.to(**like).contiguous())  # (36, C, K)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.register_buffer("before", _both_axes(INPUT).to(**like), persistent=False)  # (36, 36)
        self.register_buffer("after", _both_axes(OUTPUT).to(**like), persistent=False)  # (16, 36)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W), in channels-last memory; in the weights' dtype, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):  # the changes of basis cancel large numbers
            return self._convolve(x.to(self.weight.dtype))

    def _convolve(self, x: Tensor) -> Tensor:
        (images, channels, height, width), out_channels = x.shape, self.weight.shape[2]
        down, across = -(-height // 4), -(-width // 4)  # tiles
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * across + 1 - width, 1, 4 * down + 1 - height))
        image, row, column, _ = padded.stride()
        size = (6, 6, images, down, across, channels)  # neighbouring tiles share two rows and columns
        tiles = padded.as_strided(size, (row, column, image, 4 * row, 4 * column, 1))
        answer = x.new_empty(images, down, 4, across, 4, out_channels)
        at_once = max(1, CHUNK // (down * across))  # whole images, or rows of tiles of one
        rows = down if at_once > 1 else max(1, CHUNK // across)
        for i in range(0, images, at_once):
            for j in range(0, down, rows):
                some = self._transform(tiles[:, :, i : i + at_once, j : j + rows])
                answer[i : i + at_once, j : j + rows] = some.permute(2, 3, 0, 4, 1, 5)
        answer = answer.view(images, 4 * down, 4 * across, out_channels)[:, :height, :width]
        return answer.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _transform(self, tiles: Tensor) -> Tensor:
        """(6, 6, n, d, a, C) inputs to (4, 4, n, d, a, K) outputs."""
        shape, channels = tiles.shape[2:5], tiles.shape[5]
        changed = (self.before @ tiles.reshape(36, -1)).view(36, -1, channels)
        product = torch.bmm(changed, self.weight)  # (36, tiles, K)
        answer = (self.after @ product.view(36, -1)).view(4, 4, *shape, self.weight.shape[2])
        return answer if self.bias is None else answer.add_(self.bias)


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
            if _fits(child):
                setattr(parent, name, WinogradConv(child))
    return module


def _fits(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or min(module.in_channels, module.out_channels) < LEAST_CHANNELS:
        return False
    found = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return found == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _both_axes(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """A change of basis along one axis, as one along rows and columns of a flattened tile."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)
