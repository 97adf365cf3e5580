"""What a net sees of a batch of images at one size: its maps, on which proposals and regions are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.structures import ImageBatch, Proposals


class View:
    """The maps of a batch.

    Regions come and go in the frame of a *common* batch, since several nets and sizes look at the same ones.

    Args:
        net: in eval mode.
        images: uint8 RGB (3, H, W).
        shorter_side: None for the net's own.
    """

    def __init__(self, net: FasterRCNN, images: Sequence[Tensor], shorter_side: int | None = None) -> None:
        batch = net.preprocess(images, shorter_side)
        self.net, self.frame, self.limits = net, frame_of(batch), batch.limits()
        self.features = net.features(batch.pixels)

    def scale_from(self, common: ImageBatch) -> Tensor:
        """(N, 4) factors from the common frame to this one."""
        return self.limits / common.limits().to(self.limits)

    def propose(self) -> Proposals:
        """What the RPN proposes, in this view's own frame."""
        return self.net.propose(self.features, self.limits)

    def in_common(self, found: Proposals, common: ImageBatch) -> list[tuple[Tensor, Tensor]]:
        """(P, 4) proposals of each image in the common frame, best first, and their (P,) objectness logits."""
        boxes = found.boxes / self.scale_from(common)[:, None]
        real = found.valid.sum(1).tolist()  # they come first
        return [(b[:n], s[:n]) for b, s, n in zip(boxes, found.scores, real, strict=True)]

    def context(self) -> Tensor:
        """(N, E) vectors of the whole images."""
        return self.net.context(self.features, self.limits)

    def embed(self, boxes: Tensor, images: Tensor, context: Tensor, common: ImageBatch) -> Tensor:
        """(R, D + E) vectors of (R, 4) regions of the common frame."""
        return self.net.embed(self.features, boxes * self.scale_from(common)[images], images, context)


def frame_of(batch: ImageBatch) -> ImageBatch:
    """The sizes of a batch without its pixels, which would keep memory."""
    return batch._replace(pixels=batch.pixels.new_empty(0))


def flatten(regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(R, 4) regions of all images, and the (R,) image of each."""
    boxes = torch.cat(list(regions))
    counts = torch.tensor([len(r) for r in regions]).to(boxes.device, non_blocking=True)
    images = torch.arange(len(regions), device=boxes.device)
    return boxes, images.repeat_interleave(counts, output_size=len(boxes))


def mirror(boxes: Tensor, width: float) -> Tensor:
    """(..., 4) boxes in an image of this width, seen in a mirror."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)


def side(boxes: Tensor) -> Tensor:
    """(...) side of the square that has the area of each box."""
    return box_ops.area(boxes).sqrt()
