"""What a net sees of a batch of images at one size: its maps, on which proposals and regions are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.inference.clock import Clock
from resdet.structures import ImageBatch, Proposals


class View:
    """The maps of a batch, and what the net says of them; each is computed at its first use and kept.

    Regions come and go in the frame of a *common* batch, since several nets and sizes look at the same ones.

    Args:
        net: in eval mode.
        images: uint8 RGB (3, H, W).
        shorter_side: None for the net's own.
        wait: for the GPU, see :class:`Clock`.

    Attributes:
        clock: what the maps, the proposals and the context took.
    """

    def __init__(
        self, net: FasterRCNN, images: Sequence[Tensor], shorter_side: int | None = None, *, wait: bool = False
    ) -> None:
        self.net, self.clock = net, Clock(wait=wait)
        with self.clock.step("backbone"):
            batch = net.preprocess(images, shorter_side)
            self.frame, self.limits = frame_of(batch), batch.limits()
            self.features = net.features(batch.pixels)

    def scale_from(self, common: ImageBatch) -> Tensor:
        """(N, 4) factors from the common frame to this one."""
        return self.limits / common.limits().to(self.limits)

    @cached_property
    def proposals(self) -> Proposals:
        """What the RPN proposes, in this view's own frame."""
        with self.clock.step("proposals"):
            return self.net.propose(self.features, self.limits)

    @cached_property
    def context(self) -> Tensor:
        """(N, E) vectors of the whole images."""
        with self.clock.step("context"):
            return self.net.context(self.features, self.limits)

    def propose(self, common: ImageBatch) -> list[tuple[Tensor, Tensor]]:
        """(P, 4) proposals of each image in the common frame, best first, and their (P,) objectness logits."""
        boxes = self.proposals.boxes / self.scale_from(common)[:, None]
        real = self.proposals.valid.sum(1).tolist()  # they come first
        return [(b[:n], s[:n]) for b, s, n in zip(boxes, self.proposals.scores, real, strict=True)]

    def embed(self, boxes: Tensor, images: Tensor, context: Tensor, common: ImageBatch) -> Tensor:
        """(R, D + E) vectors of (R, 4) regions of the common frame."""
        return self.net.embed(self.features, boxes * self.scale_from(common)[images], images, context)


class Views:
    """Views of one batch of images, by net, size and mirroring; whoever asks for one again gets the same.

    The rows of the paper's Table 9 share most of their work: given the same ``Views``, they share it in fact.

    Args:
        images: uint8 RGB (3, H, W), of any sizes.
        wait: for the GPU, see :class:`Clock`.
    """

    def __init__(self, images: Sequence[Tensor], *, wait: bool = False) -> None:
        self.images, self._wait = images, wait
        self._kept: dict[tuple[FasterRCNN, int, bool], View] = {}

    def of(self, net: FasterRCNN, size: int, *, mirrored: bool = False) -> View:
        """What a net sees at a shorter side of ``size`` pixels."""
        key = net, size, mirrored
        if key not in self._kept:
            shown = [image.flip(-1) for image in self.images] if mirrored else self.images
            self._kept[key] = View(net, shown, size, wait=self._wait)
        return self._kept[key]

    def crop(self, box: tuple[int, int, int, int]) -> Views:
        """Views of the part (left, top, right, bottom) of each image; nothing of them is kept here."""
        left, top, right, bottom = box
        return Views([image[:, top:bottom, left:right] for image in self.images], wait=self._wait)


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
