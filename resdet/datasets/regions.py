"""What the second stage of a localizer learns from: whole images, and regions of each drawn from its proposals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.region_sampling import draw_regions
from resdet.datasets.views import shift_colours
from resdet.errors import InputError
from resdet.structures import RegionTarget


class RegionDataset(DetectionDataset):
    """Images of an :class:`Annotations` with regions, which the net crops and warps itself.

    Args:
        annotations: of one class an image.
        proposals: (P, 4) float32 xyxy of each image, for its class; frame: original. Rows without area are padding.
        count: regions of an image.
        positive_fraction: share of these that overlap an object, where there are so many.
        flip: probability of the mirror image.
        colour_std: standard deviation of AlexNet's alpha; 0 leaves the colours alone.

    Raises:
        InputError: the proposals are not those of so many images.
    """

    def __init__(
        self,
        annotations: Annotations,
        proposals: Sequence[np.ndarray],
        *,
        count: int = 1,
        positive_fraction: float = 0.25,
        flip: float = 0.5,
        colour_std: float = 0.1,
    ) -> None:
        super().__init__(annotations)
        if len(proposals) != len(annotations):
            needed = f"those of the {len(annotations)} images of {annotations.source}"
            raise InputError("proposals", found=f"those of {len(proposals)} images", needed=needed)
        self.proposals, self.count, self.positive_fraction = proposals, count, positive_fraction
        self.flip, self.colour_std = flip, colour_std

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, RegionTarget]:
        """Decode one image and draw its regions, a pure function of the key.

        Args:
            key: index, or (index, seed); a bare index has the seed 0.

        Returns:
            uint8 RGB (3, H, W), and the regions, frame: sample.

        Raises:
            InputError: the image does not decode.
        """
        index, seed = key if isinstance(key, tuple) else (key, 0)
        generator = np.random.default_rng((seed, index))
        image, target = super().__getitem__(index)
        proposals = torch.from_numpy(np.array(self.proposals[index], dtype=np.float32))
        if generator.random() < self.flip:
            width = image.shape[2]
            image = image.flip(2)
            target = target._replace(boxes=_mirrored(target.boxes, width))
            proposals = _mirrored(proposals, width)
        if self.colour_std:
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            shifted = shift_colours(picture, generator.normal(0.0, self.colour_std, size=3))
            image = torch.from_numpy(np.array(shifted)).permute(2, 0, 1).contiguous()
        how = {"count": self.count, "positive_fraction": self.positive_fraction}
        return image, draw_regions(proposals, target, generator=generator, **how)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
