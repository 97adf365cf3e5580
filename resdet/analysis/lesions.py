"""Residual nets with blocks deleted or swapped at test time: they err a little more, where plain nets fail.

Veit et al. 2016, "Residual networks behave like ensembles of relatively shallow networks", section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.analysis.chart import Line, Panel
from resdet.backbones.resnet import blocks_of, stages_of
from resdet.backbones.shortcuts import Absent, ZeroPadding
from resdet.classification.classifier import Classifier
from resdet.errors import InputError
from resdet.evaluation.classification import ranks

Lesion = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the net is damaged."""


class Deletion(NamedTuple):
    """Blocks deleted together, counted from 1."""

    blocks: tuple[int, ...]
    error: float
    """Top-1, a fraction."""


class Swap(NamedTuple):
    """Pairs of blocks swapped."""

    pairs: int
    tau: float
    """Kendall's rank correlation of the new order of all blocks with the old one; 1: unchanged."""
    error: float
    """Top-1, a fraction."""


class Lesions(NamedTuple):
    """What deletions and swaps cost."""

    names: list[str]
    """Of the blocks, in order."""
    resizing: list[int]
    """Blocks that change size: deleted, they keep their shortcut, which is no identity."""
    intact: float
    """Top-1 error of the whole net, a fraction."""
    single: list[Deletion]
    several: list[Deletion]
    swaps: list[Swap]
    """Of two blocks of one stage that keep size. None where no stage has two."""


def residual_blocks(net: nn.Module, *, plain: bool = False) -> list[nn.Module]:
    """The blocks of a residual net of ours, or with ``plain`` of its plain counterpart, too, in order.

    Raises:
        InputError: they are others', or have no shortcut.
    """
    blocks = blocks_of(net)
    for number, block in enumerate(blocks, start=1):
        where, needed = f"block {number} of {type(net).__name__}", "a residual net of ours, such as cifar-resnet20"
        if not (hasattr(block, "residual") and hasattr(block, "downsample")):
            raise InputError(where, found=f"a {type(block).__name__} of another library", needed=needed)
        if not plain and isinstance(block.downsample, Absent):
            raise InputError(where, found="no shortcut (a plain net)", needed=needed)
    return blocks


@contextmanager
def deleted(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Only the shortcuts of these blocks are left: an identity, unless the block changes size.

    A block of a plain net has none: its layers are left out, as those of a VGG in Veit's Fig. 3, and where the size
    changes the maps are thinned and padded (option A), without which nothing could follow.
    """
    blocks = list(blocks)
    around = {block: block.downsample for block in blocks if isinstance(block.downsample, Absent)}
    try:
        for block in blocks:
            block.residual = lambda x: x.new_zeros(())
            if block in around:
                convs = [m for m in block.children() if isinstance(m, nn.Conv2d)]
                stride = max(conv.stride[0] for conv in convs)
                block.downsample = ZeroPadding(convs[0].in_channels, convs[-1].out_channels, stride=stride)
        yield
    finally:
        for block in blocks:
            del block.residual  # the method is seen again
            block.downsample = around.get(block, block.downsample)


@contextmanager
def reordered(net: nn.Module, order: Sequence[int]) -> Iterator[None]:
    """The blocks of a net in another order: ``order[place]`` is the number of the block, from 0, that runs there."""
    places = [(stage, place) for stage in stages_of(net) for place in range(len(stage))]
    blocks = blocks_of(net)
    try:
        for (stage, place), number in zip(places, order, strict=True):
            stage[place] = blocks[number]
        yield
    finally:
        for (stage, place), block in zip(places, blocks, strict=True):
            stage[place] = block


@torch.no_grad()
def errors_under(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], lesions: Sequence[Lesion]
) -> list[float]:
    """Top-1 error, a fraction, of the net under each lesion, in one pass over the images.

    Raises:
        InputError: there is no image.
    """
    classifier.eval()
    device, count = classifier.mean.device, 0
    wrong = torch.zeros(len(lesions), dtype=torch.int64, device=device)
    for images, labels in batches:
        images = images.to(device) if isinstance(images, Tensor) else images
        labels, count = labels.to(device), count + len(labels)
        for row, lesion in enumerate(lesions):
            with lesion():
                wrong[row] += (ranks(classifier.predict(images), labels) > 0).sum()
    if not count:
        raise InputError("lesions", found="no images", needed="at least one")
    return (wrong.double() / count).tolist()


def measure_lesions(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, draws: int = 5, seed: int = 0
) -> Lesions:
    """Delete each block, then k random ones, then swap k random pairs, for k from 1 to the number of blocks.

    There are ``draws`` random choices for each k. The net is put into eval mode, otherwise as before afterwards.

    Raises:
        InputError: the net is not one of ours, or there is no image.
    """
    net = classifier.net
    blocks = residual_blocks(net, plain=True)
    chance = torch.Generator().manual_seed(seed)
    single = [(number,) for number in range(len(blocks))]
    several = draw_subsets(len(blocks), draws, chance)
    orders = draw_orders(len(blocks), _swappable(net), draws, chance)
    lesions: list[Lesion] = [partial(deleted, [blocks[i] for i in chosen]) for chosen in ((), *single, *several)]
    lesions += [partial(reordered, net, order) for _, order in orders]
    intact, *errors = errors_under(classifier, batches, lesions)
    deletions = [
        Deletion(tuple(i + 1 for i in chosen), error)
        for chosen, error in zip([*single, *several], errors, strict=False)
    ]
    return Lesions(
        [name for name, module in net.named_modules() if module in set(blocks)],
        [number for number, block in enumerate(blocks, start=1) if block.resizes],
        intact,
        deletions[: len(single)],
        deletions[len(single) :],
        [
            Swap(pairs, kendall_tau(order), error)
            for (pairs, order), error in zip(orders, errors[len(deletions) :], strict=True)
        ],
    )


def draw_subsets(blocks: int, draws: int, chance: torch.Generator) -> list[tuple[int, ...]]:
    """Of each size from 1 to ``blocks`` so many random subsets, each once."""
    subsets: dict[tuple[int, ...], None] = {}
    for size in range(1, blocks + 1):
        for _ in range(draws):
            subsets[tuple(torch.randperm(blocks, generator=chance)[:size].sort().values.tolist())] = None
    return list(subsets)


def draw_orders(
    blocks: int, pairs: Sequence[tuple[int, int]], draws: int, chance: torch.Generator
) -> list[tuple[int, list[int]]]:
    """Orders after 1 to ``blocks`` random swaps of pairs of places, with the number of swaps."""
    orders = []
    for swaps in range(1, blocks + 1) if pairs else ():
        for _ in range(draws):
            order = list(range(blocks))
            for choice in torch.randint(len(pairs), (swaps,), generator=chance).tolist():
                a, b = pairs[choice]
                order[a], order[b] = order[b], order[a]
            orders.append((swaps, order))
    return orders


def kendall_tau(order: Sequence[int]) -> float:
    """Rank correlation of a permutation with the identity: 1 - 2 x share of the pairs that are the wrong way round."""
    ranking = torch.tensor(order)
    wrong = torch.triu(ranking[:, None] > ranking[None, :], diagonal=1).sum()
    pairs = len(order) * (len(order) - 1) / 2
    return 1 - 2 * float(wrong) / pairs if pairs else 1.0


def lesion_panels(lesions: Lesions) -> list[Panel]:
    """Error after each single deletion, after k of them, and against the order's rank correlation."""
    count, ylabel = len(lesions.single), "top-1 error (%)"
    intact = Line((1, count), [100 * lesions.intact] * 2, "intact", 7, "dashed")
    kept = [row for row in lesions.single if row.blocks[0] not in lesions.resizing]
    resized = [row for row in lesions.single if row.blocks[0] in lesions.resizing]
    single = [
        Line([row.blocks[0] for row in rows], [100 * row.error for row in rows], name, colour, "points")
        for rows, name, colour in ((kept, "block of one size", 0), (resized, "block that changes size", 3))
        if rows
    ]
    by_size = {k: torch.tensor([d.error for d in lesions.several if len(d.blocks) == k]) for k in range(1, count + 1)}
    means = [100 * float(errors.mean()) for errors in by_size.values()]
    spreads = [100 * float(errors.std()) if len(errors) > 1 else 0.0 for errors in by_size.values()]
    several = [Line(list(by_size), means, "mean ± standard deviation", 0, spread=spreads), intact._replace(name="")]
    panels = [
        Panel("one block deleted", "block", ylabel, [*single, intact]),
        Panel("several blocks deleted", "number of deleted blocks", ylabel, several),
    ]
    if lesions.swaps:
        taus = [swap.tau for swap in lesions.swaps]
        points = Line(taus, [100 * swap.error for swap in lesions.swaps], style="points")
        ends = intact._replace(x=(min(taus), 1.0), name="")
        panels.append(Panel("blocks swapped within stages", "Kendall's tau of the order", ylabel, [points, ends]))
    return panels


def _swappable(net: nn.Module) -> list[tuple[int, int]]:
    """Pairs of blocks, counted from 0, of one stage and of one size.

    Without the first block of a pre-activation net, which takes activated maps.
    """
    pairs, start = [], 0
    for stage in stages_of(net):
        fit = [
            start + place
            for place, block in enumerate(stage)
            if not block.resizes and not isinstance(getattr(block, "bn1", None), nn.Identity)
        ]
        pairs += [(a, b) for i, a in enumerate(fit) for b in fit[i + 1 :]]
        start += len(stage)
    return pairs
