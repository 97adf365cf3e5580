"""A classification net with its input normalisation and its loss (sections 3.4 and 4.1 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdet.errors import InputError

# Differs from the paper: it subtracts a mean image (one mean per pixel); we subtract one mean per channel and divide by
# the standard deviation, as torchvision's and timm's weights expect. Their figures for ImageNet, times 255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Classifier(nn.Module):
    """uint8 images in, logits or losses out; normalisation happens on the device, in channels-last memory.

    The mean and the deviation are settings and not weights: they are in no state dict.

    Args:
        net: (N, 3, H, W) float to (N, K) logits.
        mean: of R, G, B, on the scale 0-255.
        std: of R, G, B, on the scale 0-255.
        label_smoothing: share of the target spread evenly over the K classes, in [0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError("Classifier", found=f"mean = {mean}, std = {std}", needed="three means, three std above 0")
        if not 0 <= label_smoothing < 1:
            raise InputError("Classifier", found=f"label_smoothing = {label_smoothing}", needed="a share in [0, 1)")
        self.net = net.to(memory_format=torch.channels_last)
        self.label_smoothing = label_smoothing
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or float, in both cases on the scale 0-255, to what the net takes."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError("images of a Classifier", found=f"shape {tuple(images.shape)}", needed="(N, 3, H, W) RGB")
        return (images.contiguous(memory_format=torch.channels_last) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB on the scale 0-255 to (N, K) logits."""
        return self.net(self.normalise(images))

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, the mean over the batch.

        Args:
            images: (N, 3, H, W) RGB on the scale 0-255, uint8 or float.
            labels: (N,) int64 in [0, K).

        Returns:
            ``{"loss_cls": scalar}``.
        """
        logits = self(images).float()
        return {"loss_cls": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}

    def predict(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB on the scale 0-255 to (N, K) float32 logits. Call it in eval mode."""
        return self(images).float()
