"""The first stage of appendix C: a classification net, fully convolutional, with a per-class RPN on its last map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.detection.matching import pad_targets
from resdet.detection.preprocess import Preprocess
from resdet.detection.rpn import MIN_SIDE
from resdet.errors import InputError
from resdet.localization.per_class_rpn import PerClassRPN
from resdet.localization.selection import best, join
from resdet.localization.settings import LocalizationTest
from resdet.structures import ClassBoxes, ImageBatch, Localizations, Target


class Look(NamedTuple):
    """What of an image the net sees."""

    side: int
    """Shorter side in pixels that the image is resized to."""
    crop: int | None = None
    """Side of the centre crop of that; None for all of it."""

    def window(self, hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what is seen of a resized image."""
        if self.crop is None:
            return 0, 0, *hw
        height, width = (min(self.crop, length) for length in hw)
        return round((hw[0] - height) / 2), round((hw[1] - width) / 2), height, width


class PerClassLocalizer(nn.Module):
    """Crops in and losses out; whole images and classes in, boxes out.

    Args:
        preprocess: its shorter side is the crop that the net is trained on.
        backbone: (N, 3, H, W) to a list of maps, the last of which is used.
        rpn: on that map.
    """

    def __init__(self, preprocess: Preprocess, backbone: nn.Module, rpn: PerClassRPN) -> None:
        super().__init__()
        self.preprocess, self.backbone, self.rpn = preprocess, backbone, rpn

    @property
    def num_classes(self) -> int:
        """K."""
        return self.rpn.num_classes

    @property
    def crop(self) -> int:
        """Side of the training crops."""
        return self.preprocess.test_side

    def looks(self, settings: LocalizationTest) -> list[Look]:
        """How the settings let this net see an image."""
        sides = settings.sides or (round(self.crop * 8 / 7),)  # 256 for 224
        if settings.view == "centre" and min(sides) < self.crop:
            needed = f"shorter sides of {self.crop} or more, the net's crop, or test.view=dense"
            raise InputError("test.sides", found=sides, needed=needed)
        return [Look(side, self.crop if settings.view == "centre" else None) for side in sides]

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The two losses of a batch.

        Args:
            images: uint8 RGB (3, H, W) crops; of another size than the net's they are resized.
            targets: ground truth of each, frame: sample. See :meth:`PerClassRPN.loss`.
        """
        batch = self.preprocess(images)
        truth = pad_targets(self.preprocess.move_targets(targets, batch))
        return self.rpn.loss(self.backbone(batch.pixels)[-1], truth)

    @torch.no_grad()
    def candidates(self, images: Sequence[Tensor], classes: Sequence[Tensor], look: Look) -> list[ClassBoxes]:
        """The box of every anchor for each class asked for, in the order of the anchors.

        An image's answer does not depend on the others: whole images go through the net together only where they need
        the same padding.

        Args:
            images: uint8 RGB (3, H, W), of any sizes.
            classes: (C,) int64 for each image, C the same in all.
            look: what is seen of them.

        Returns:
            Of each image, in the frame of what was passed in. Anchors that centre beyond the image are left out; a box
            of which the image's border leaves nothing has score 0.

        Raises:
            InputError: classes that differ in number or are not of this net.
        """
        asked = stack_classes(classes, len(images), self.num_classes)
        batch = self.preprocess(images, look.side)
        windows = [look.window(hw) for hw in batch.input_hw]
        if look.crop is None:
            groups = _alike(batch, self.preprocess.multiple)
        else:
            groups = [(list(range(len(images))), _cut(batch.pixels, windows, look.crop))]
        found = {}
        for rows, pixels in groups:
            feature = self.backbone(pixels)[-1]
            labels = torch.stack([asked[n] for n in rows]).to(feature.device, non_blocking=True)
            logits, deltas = self.rpn(feature, labels)
            boxes = box_ops.decode(deltas, self.rpn.anchors([feature])[0])
            grid = (*feature.shape[2:], -1)
            boxes, scores = boxes.unflatten(2, grid), logits.float().sigmoid().unflatten(2, grid)
            for row, n in enumerate(rows):
                found[n] = self._in_original(boxes[row], scores[row], labels[row], windows[n], batch, n)
        return [found[n] for n in range(len(images))]

    @torch.no_grad()
    def predict(
        self, images: Sequence[Tensor], classes: Sequence[Tensor], settings: LocalizationTest | None = None
    ) -> list[Localizations]:
        """The best box of each class asked for; see :meth:`candidates`. Call it in eval mode."""
        settings = settings or LocalizationTest()
        seen = [self.candidates(images, classes, look) for look in self.looks(settings)]
        return best([join(parts) for parts in zip(*seen, strict=True)], vote=settings.vote)

    def _in_original(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, window: tuple, batch: ImageBatch, n: int
    ) -> ClassBoxes:
        """(C, H, W, A, 4) boxes and (C, H, W, A) scores of image n, without the padding, in the frame of its file."""
        top, left, *seen_hw = window
        stride = self.rpn.anchors.strides[0]
        rows, columns = (-(-length // stride) for length in seen_hw)  # an anchor centres on the corner of its cell
        boxes, scores = boxes[:, :rows, :columns].flatten(1, 3), scores[:, :rows, :columns].flatten(1, 3)
        original_hw = batch.sample_hw[n]
        numbers = torch.tensor([(left, top) * 2, original_hw[::-1] * 2], dtype=boxes.dtype)
        corner, limits = numbers.to(boxes.device, non_blocking=True)
        boxes = box_ops.scale(boxes + corner, batch.input_hw[n], original_hw)
        boxes = box_ops.clip(boxes, limits)
        empty = ((boxes[..., 2:] - boxes[..., :2]) < MIN_SIDE).any(-1)
        return ClassBoxes(labels, boxes, scores.masked_fill(empty, 0))


def stack_classes(classes: Sequence[Tensor], images: int, num_classes: int) -> Tensor:
    """(N, C) of the classes asked of N images.

    Raises:
        InputError: not one (C,) tensor for each image, with one C for all, and classes in [0, K).
    """
    where = "classes asked of a localizer"
    shapes = {tuple(c.shape) for c in classes}
    if len(classes) != images or len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        found = f"{len(classes)} tensors of shapes {sorted({tuple(c.shape) for c in classes})} for {images} images"
        raise InputError(where, found=found, needed="one (C,) tensor an image, C the same for all and 1 or more")
    asked = torch.stack(list(classes))
    if not asked.is_cuda and not ((asked >= 0) & (asked < num_classes)).all():  # asking a GPU would wait for it
        found = f"{int(asked.min())} .. {int(asked.max())}"
        raise InputError(where, found=found, needed=f"int64 in [0, {num_classes})")
    return asked


def _alike(batch: ImageBatch, multiple: int) -> list[tuple[list[int], Tensor]]:
    """The images of a batch in groups that need the same padding, with no more than that: their numbers and pixels."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, hw in enumerate(batch.input_hw):
        groups.setdefault(tuple(-(-length // multiple) * multiple for length in hw), []).append(n)
    pixels = (torch.stack([batch.pixels[n, :, :h, :w] for n in rows]) for (h, w), rows in groups.items())
    laid = [part.contiguous(memory_format=torch.channels_last) for part in pixels]
    return list(zip(groups.values(), laid, strict=True))


def _cut(pixels: Tensor, windows: Sequence[tuple[int, int, int, int]], side: int) -> Tensor:
    """The windows of a padded batch; one that is smaller than ``side`` is padded again."""
    batch = pixels.new_zeros((len(pixels), 3, side, side)).contiguous(memory_format=torch.channels_last)
    for place, image, (top, left, height, width) in zip(batch, pixels, windows, strict=True):
        place[:, :height, :width] = image[:, top : top + height, left : left + width]
    return batch
