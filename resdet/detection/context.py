"""Global context (the paper, appendix B): what the whole image says, beside what each region says.

The image is one more region: it is pooled like the others, goes through the same layers, and its vector is concatenated
with that of each of them, before the two sibling layers. All of it is trained together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Embed = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]
"""(features, (R, 4) boxes, (R,) images) to (R, D) vectors: :meth:`resdet.detection.roi_head.RoIHead.embed`."""


def whole_images(limits: Tensor) -> Tensor:
    """(N, 4) boxes of whole images from the (N, 4) clip limits ``(W, H, W, H)``."""
    return torch.cat([torch.zeros_like(limits[:, :2]), limits[:, 2:]], dim=1)


def image_vectors(embed: Embed, features: Sequence[Tensor], limits: Tensor) -> Tensor:
    """(N, D) vectors of whole images, each as the one region of its image.

    Args:
        embed: regions to vectors.
        features: per level (N, C, H, W).
        limits: (N, 4) clip limits: padding is not part of the image.
    """
    return embed(features, whole_images(limits), torch.arange(len(limits), device=limits.device))


def no_vectors(features: Sequence[Tensor]) -> Tensor:
    """(N, 0): what a net without context knows of its images."""
    return features[0].new_zeros(len(features[0]), 0)


def concatenate(vectors: Tensor, context: Tensor, images: Tensor) -> Tensor:
    """(R, D) region vectors, each followed by the (N, E) context of its image: (R, D + E)."""
    return torch.cat([vectors, context[images]], dim=1)
