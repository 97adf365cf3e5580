"""Loss functions of both stages, on fixed-shape samples with masks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTH_L1_BETA = 1 / 9
"""Where smooth L1 turns from quadratic to linear: sigma = 3 in Ren's RPN, and torchvision's value for both stages."""


def objectness_loss(logits: Tensor, positive: Tensor, used: Tensor) -> Tensor:
    """Mean binary cross-entropy of the (N, S) sampled anchors; 0 when none is used."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return (loss * used).sum() / used.sum().clamp(min=1)


def class_loss(logits: Tensor, labels: Tensor, used: Tensor) -> Tensor:
    """Mean softmax cross-entropy of (R, K + 1) logits; background is label K; 0 when no RoI is used."""
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    return (loss * used).sum() / used.sum().clamp(min=1)


def box_loss(
    deltas: Tensor, targets: Tensor, positive: Tensor, used: Tensor, *, beta: float = SMOOTH_L1_BETA
) -> Tensor:
    """Smooth L1 over positives (Fast R-CNN, eq. 3), divided by all that are used, as both papers balance it.

    Args:
        deltas: (..., 4) predictions.
        targets: (..., 4) their targets; values where ``positive`` is false do not matter.
        positive: (...) bool.
        used: (...) bool.
        beta: where the loss turns linear; 0 gives plain L1.
    """
    loss = F.smooth_l1_loss(deltas.float(), targets, beta=beta, reduction="none").sum(-1)
    return (loss * positive).sum() / used.sum().clamp(min=1)
