"""The paths through a residual net: how many there are of each length, and what gradient each carries.

Veit et al. 2016 (see :mod:`resdet.analysis.lesions`), sections 3 and 5. Each block is passed by its residual branch or
by its shortcut, so n blocks make 2^n paths; a path's length is its number of residual branches, and C(n, k) paths have
length k. The gradient at the input is the sum over all paths. The measure takes single paths: the backward pass goes
through the residual branches of k random blocks *only*, and through the shortcuts of all others only. The forward pass
is that of the whole net.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.analysis.chart import Line, Panel
from resdet.analysis.gradients import batch_statistics
from resdet.analysis.lesions import residual_blocks
from resdet.backbones.shortcuts import GatedSum
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


class Paths(NamedTuple):
    """Rows are path lengths 0 to n."""

    share: list[float]
    """Of all paths, those of this length."""
    gradient: list[float]
    """L2 norm at the input, the mean over the paths sampled and the images."""
    spread: list[float]
    """Standard deviation of that over the paths sampled."""
    contribution: list[float]
    """``share * gradient``, divided by its sum."""

    @property
    def mean_length(self) -> float:
        """Of all paths."""
        return sum(length * share for length, share in enumerate(self.share))

    @property
    def effective_length(self) -> float:
        """Mean length of the paths, each weighed by its gradient."""
        return sum(length * part for length, part in enumerate(self.contribution))


def path_shares(blocks: int) -> list[float]:
    """Share of the paths of each length from 0 to ``blocks``: binomial, with equal odds for branch and shortcut."""
    return [math.comb(blocks, length) / 2**blocks for length in range(blocks + 1)]


@contextmanager
def single_path(blocks: Sequence[nn.Module], chosen: Collection[int]) -> Iterator[None]:
    """The gradient flows through the residual branches of the chosen blocks, counted from 0, and else by shortcuts."""
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            if number in chosen:
                stack.enter_context(block.downsample.register_forward_hook(_detach))
            else:
                block.residual = torch.no_grad()(block.residual)
                stack.callback(delattr, block, "residual")  # the method is seen again
        yield


def path_gradient(classifier: Classifier, images: Tensor, labels: Tensor, chosen: Collection[int]) -> Tensor:
    """Gradient of each image's loss at the normalised image, along one path.

    Args:
        classifier: of a residual net, in the mode wanted.
        images: (N, 3, H, W) RGB on the scale 0-255; the gradient is of this shape.
        labels: (N,).
        chosen: blocks passed by their residual branch, counted from 0.
    """
    inputs = classifier.normalise(images).detach().requires_grad_()
    with single_path(residual_blocks(classifier.net), chosen), torch.enable_grad():
        loss = nn.functional.cross_entropy(classifier.net(inputs).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, inputs)[0]


def measure_paths(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, samples: int = 20, seed: int = 0
) -> Paths:
    """Sample paths of each length; BN normalises by the batch, as in training.

    Args:
        classifier: of a residual net; as before afterwards.
        batches: (N, 3, H, W) training images and labels; the samples of a length take them in turn.
        samples: paths of each length. The study took 1,000.
        seed: of their choice.

    Raises:
        InputError: the net is not residual, its sums are gated, or there is no image.
    """
    blocks = residual_blocks(classifier.net)
    if any(isinstance(block.join, GatedSum) for block in blocks):
        found = "gates, through which gradient flows besides branch and shortcut"
        raise InputError("paths of a net", found=found, needed="plain or scaled sums")
    batches = [(x.to(classifier.mean.device), y.to(classifier.mean.device)) for x, y in batches]
    if not batches:
        raise InputError("paths of a net", found="no batch of images", needed="at least one")
    chance = torch.Generator().manual_seed(seed)
    means, spreads = [], []
    with batch_statistics(classifier):
        for length in range(len(blocks) + 1):
            norms = []
            for sample in range(samples):
                images, labels = batches[sample % len(batches)]
                chosen = set(torch.randperm(len(blocks), generator=chance)[:length].tolist())
                gradient = path_gradient(classifier, images, labels, chosen)
                norms.append(gradient.flatten(1).norm(dim=1).mean())
            norms = torch.stack(norms).double()
            means.append(float(norms.mean()))
            spreads.append(float(norms.std()) if samples > 1 else 0.0)
    shares = path_shares(len(blocks))
    products = [share * mean for share, mean in zip(shares, means, strict=True)]
    whole = sum(products) or 1.0  # a net that passes no gradient
    return Paths(shares, means, spreads, [product / whole for product in products])


def path_panels(paths: Paths) -> list[Panel]:
    """How many paths, what each carries, and the product."""
    lengths, xlabel = range(len(paths.share)), "path length (residual blocks)"
    positive = [value or math.nan for value in paths.gradient]
    return [
        Panel("distribution of path lengths", xlabel, "share of paths (%)", [_percent(lengths, paths.share)]),
        Panel("gradient of one path at the input", xlabel, "L2 norm, mean", [Line(lengths, positive)], log=True),
        Panel("product of both", xlabel, "share of the gradient (%)", [_percent(lengths, paths.contribution)]),
    ]


def _percent(x: Sequence[int], shares: Sequence[float]) -> Line:
    return Line(x, [100 * share for share in shares])


def _detach(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.detach()
