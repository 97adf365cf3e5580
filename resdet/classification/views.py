"""Scores of an image from many views of it (section 3.4 of the paper): 10 crops, or whole images at several scales.

The data set makes the views (:mod:`resdet.datasets.views`); here a net looks at them and its answers are averaged.

*The fully convolutional form.* The paper takes it from its references [41] (VGG, section 3.2) and [13] (PReLU-nets):
the classifier is applied at every place of the last feature map, and the map of class scores is averaged over the
places. For a residual net a place is a window as large as the whole map was in training, 7x7 for views of 224: pool
each window (stride 1), apply the linear layer to it, average the scores. That is what averaging over all crops of 224,
32 pixels apart, would give if crops saw beyond their edges.

One global average over the whole map would be something else: it weighs all cells alike, while of the windows only
one reaches a corner cell and 49 an inner one, so the borders count less.

The linear layer commutes with the mean over places, so it is applied once, to the mean of the windows. Within a view
scores are averaged before the softmax; over views, scales, mirror images and nets the probabilities are, as in [41].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdet.errors import InputError

WINDOW = 7
"""Side of the last map of a 224x224 view, for nets of stride 32 (Table 1)."""
PIXELS_AT_ONCE = 64 * 224 * 224
"""Bound of one pass: 64 views of 224, for which the largest maps of Table 1's nets take 0.2 GB each (float32)."""


def dense_logits(net: nn.Module, images: Tensor, *, window: int = WINDOW) -> Tensor:
    """Logits of whole images of any size, averaged over the places of the last map.

    The net is one of two kinds. Either it averages the last map in a module called ``avgpool`` or ``global_pool`` and
    applies the linear layer ``fc`` to that (ours, torchvision's and timm's residual nets). Or it has a method
    ``score_map(images) -> (N, K, h, w)`` that tells the logits of each place itself: a VGG would offer its fc6 as a
    7x7 convolution there, fc7 and fc8 as 1x1 ones.

    Args:
        net: (N, 3, H, W) to (N, K), in eval mode.
        images: (N, 3, H, W), as the net takes them.
        window: side of the last map of a training view; a smaller map is one window.

    Returns:
        (N, K). For images no larger than the training views the same as ``net(images)``.

    Raises:
        InputError: the net is of neither kind.
    """
    score_map = getattr(net, "score_map", None)
    if callable(score_map):
        return score_map(images).mean(dim=(2, 3))
    calls = []

    def pool_windows(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        calls.append(inputs[0].shape)
        return _windows(inputs[0], window)

    hook = _global_pool(net).register_forward_pre_hook(pool_windows)
    try:
        logits = net(images)
    finally:
        hook.remove()
    if len(calls) != 1:
        raise _not_open(net, f"a pooling that ran {len(calls)} times in one pass")
    return logits


def view_logits(score: Callable[[Tensor], Tensor], images: Sequence[Sequence[Tensor]]) -> Tensor:
    """Logits of the views of several images; those of one size go through the net together.

    Args:
        score: (n, 3, h, w) to (n, K) logits.
        images: N lists of V views each, (3, h, w), of any sizes.

    Returns:
        (N, V, K).

    Raises:
        InputError: there is no view, or one image has more than another.
    """
    counts = sorted({len(views) for views in images})
    if len(counts) != 1 or not counts[0]:
        raise InputError(
            "views of a batch", found=f"{counts} per image", needed="the same number, at least one, of each"
        )
    views = [view for of_image in images for view in of_image]
    places: dict[torch.Size, list[int]] = {}
    for place, view in enumerate(views):
        places.setdefault(view.shape, []).append(place)
    passes = [part for shape, group in places.items() for part in _parts(group, shape[-2:].numel())]
    logits = torch.cat([score(torch.stack([views[place] for place in part])) for part in passes])
    back = torch.tensor([place for part in passes for place in part]).argsort().to(logits.device)
    return logits[back].unflatten(0, (len(images), counts[0]))


def mean_scores(logits: Tensor) -> Tensor:
    """Log of the mean of the probabilities, which ranks and softmaxes like logits do.

    Args:
        logits: (N, V, K) of V views, or of V nets.

    Returns:
        (N, K) float32; the logits as they are where V is 1.
    """
    logits, views = logits.float(), logits.shape[1]
    return logits[:, 0] if views == 1 else logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(views)


def _windows(maps: Tensor, side: int) -> Tensor:
    """(N, C, h, w) to the mean of each window, (N, C, h - side + 1, w - side + 1)."""
    return F.avg_pool2d(maps, [min(side, length) for length in maps.shape[2:]], stride=1)


def _global_pool(net: nn.Module) -> nn.Module:
    """The module that averages the last map."""
    pools = [pool for name in ("avgpool", "global_pool") if isinstance(pool := getattr(net, name, None), nn.Module)]
    if len(pools) != 1 or not isinstance(getattr(net, "fc", None), nn.Linear):
        raise _not_open(net, "no average pooling 'avgpool' or 'global_pool' with a linear layer 'fc' after it")
    # Two channels of 2x2: 0 1 2 3 and 4 5 6 7, with the means 1.5 and 5.5; a maximum would tell 3 and 7.
    pooled = pools[0](torch.arange(8.0).view(1, 2, 2, 2)).flatten().tolist()
    if pooled != [1.5, 5.5]:
        raise _not_open(net, "a pooling that is not the average over the whole map")
    return pools[0]


def _not_open(net: nn.Module, found: str) -> InputError:
    needed = "avgpool (or global_pool) and fc as residual nets have them, or a method score_map(images) -> (N, K, h, w)"
    return InputError(f"fully convolutional form of {type(net).__name__}", found=found, needed=needed)


def _parts(places: list[int], pixels: int) -> list[list[int]]:
    """Views of one size in runs that fit into one pass."""
    size = max(1, PIXELS_AT_ONCE // max(1, pixels))
    return [places[start : start + size] for start in range(0, len(places), size)]
