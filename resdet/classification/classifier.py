"""A classification net with its input normalisation and its loss (sections 3.4 and 4.1 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdet.classification.views import WINDOW, dense_logits, mean_scores, view_logits
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
        mixing: normalised images and labels to mixed images and (N, K) targets, in training (mixup, CutMix).
        window: side of the net's last map in training, for the fully convolutional form of :meth:`predict`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        label_smoothing: float = 0.0,
        mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        window: int = WINDOW,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError("Classifier", found=f"mean = {mean}, std = {std}", needed="three means, three std above 0")
        if not 0 <= label_smoothing < 1:
            raise InputError("Classifier", found=f"label_smoothing = {label_smoothing}", needed="a share in [0, 1)")
        if window < 1:
            raise InputError("Classifier", found=f"window = {window}", needed="1 or more cells of the last map")
        self.net, self.window = net.to(memory_format=torch.channels_last), window
        self.label_smoothing, self.mixing = label_smoothing, mixing
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
            ``{"loss_cls": scalar, "error": scalar}``: the latter is the share of wrong answers (top-1), not trained
            on; with mixing it is counted against the heavier label.
        """
        views, targets = self.normalise(images), labels
        if self.mixing is not None and self.training:
            views, targets = self.mixing(views, labels)
        logits = self.net(views).float()
        right = targets if targets.ndim == 1 else targets.argmax(1)
        return {
            "loss_cls": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing),
            "error": (logits.detach().argmax(1) != right).float().mean(),
        }

    def predict(self, images: Tensor | Sequence[Sequence[Tensor]]) -> Tensor:
        """Scores of images from one view or many. Call it in eval mode.

        Args:
            images: RGB on the scale 0-255, uint8 or float: (N, 3, H, W), one view each; or (N, V, 3, H, W), such as 10
                crops; or N lists of V whole images (3, h, w) of any sizes, which go through the net in its fully
                convolutional form (:mod:`resdet.classification.views`).

        Returns:
            (N, K) float32: the logits of the one view, or the log of the views' mean probabilities.

        Raises:
            InputError: images of another shape, or a net without a fully convolutional form.
        """
        if not isinstance(images, Tensor):
            return mean_scores(view_logits(self._dense, images))
        if images.ndim == 5:  # one view of all images after the other, so that a batch needs no more memory than before
            return mean_scores(torch.stack([self(view) for view in images.unbind(dim=1)], dim=1))
        return self(images).float()

    def _dense(self, images: Tensor) -> Tensor:
        return dense_logits(self.net, self.normalise(images), window=self.window)
