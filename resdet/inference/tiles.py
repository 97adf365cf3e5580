"""Tiles: a large image looked at piece by piece, so that its small objects reach the net at a size that it knows.

Each tile runs as an image of its own. The whole image stays one of the looks, which sees what no tile holds, as in
slicing aided hyper inference (SAHI, Akyon et al. 2022).

Differs from SAHI: a box that ends at the edge of its tile inside the image is dropped, and not merged with its other
half. An object smaller than the overlap is whole in another tile; one that is larger is the whole image's to find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from resdet.inference.view import Views
from resdet.structures import ImageBatch, ScoredBoxes

Box = tuple[int, int, int, int]
"""Left, top, right, bottom of a tile in pixels of the image."""
NEAR = 0.01
"""A box that ends within this share of a tile's side of its edge ends at it: nets place the side of an object that is
cut off within some pixels of the cut."""


def look_at_tiles(
    views: Views,
    look: Callable[[Views], tuple[list[list[ScoredBoxes]], ImageBatch]],
    *,
    side: int | None,
    overlap: float,
    least: float,
) -> list[list[ScoredBoxes]]:
    """What each look gives of each image through its tiles, in pixels of the image; one tile of each runs at a time.

    Args:
        views: of images of one size.
        look: what each look gives, and the frame that it is in.
        side: of a tile; None: no tiles, and no look.
        overlap: share of the side.
        least: of the regions of a tile only those stay that some class has above it.
    """
    if side is None:
        return []
    ((height, width),) = {image.shape[1:] for image in views.images}
    tiles = []
    for box in tile_boxes((height, width), side, overlap):
        scored, frame = look(views.crop(box))
        read = partial(from_tile, box=box, seen_hw=frame.input_hw[0], image_hw=(height, width), least=least)
        tiles.append([list(map(read, of_look)) for of_look in scored])
    return join_tiles(tiles)


def tile_boxes(hw: tuple[int, int], side: int, overlap: float) -> list[Box]:
    """Tiles that cover an image, row by row.

    Neighbours share ``overlap`` of a side, rounded to pixels, or more: the last of a row and of a column is moved
    inside. So a box whose sides are no longer than that lies whole in one of them.

    Args:
        hw: size of the image.
        side: of a tile, in pixels; an image that is narrower has tiles of its own width, likewise for the height.
        overlap: share of the side.

    Returns:
        None at all of an image that is no larger than a tile, as that one would be the image itself.
    """
    if max(hw) <= side:
        return []
    height, width = hw
    rows, columns = (_starts(length, side, overlap) for length in hw)
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    return [*range(0, length - side, side - round(side * overlap)), max(0, length - side)]


def from_tile(
    scored: ScoredBoxes, *, box: Box, seen_hw: tuple[int, int], image_hw: tuple[int, int], least: float
) -> ScoredBoxes:
    """What was said of a tile, in the frame of the image.

    Args:
        scored: frame: input of the tile.
        box: the tile.
        seen_hw: its size in that frame.
        image_hw: size of the image.
        least: rows in which no class has more are dropped, so that many tiles keep little; they could at most vote.

    Returns:
        The rows that are left, in pixels of the image. The probability of a box that is cut off is 0.
    """
    left, top, right, bottom = box
    factors = scored.boxes.new_tensor([(right - left) / seen_hw[1], (bottom - top) / seen_hw[0]] * 2)
    boxes = scored.boxes * factors + scored.boxes.new_tensor([left, top] * 2)
    probabilities = scored.probabilities.masked_fill(cut_off(boxes, box, image_hw), 0)
    kept = probabilities.amax(1) > least
    return ScoredBoxes(boxes[kept], probabilities[kept])


def cut_off(boxes: Tensor, box: Box, image_hw: tuple[int, int]) -> Tensor:
    """(...) whether each of (..., 4) boxes ends at an edge of its tile that is not one of the image."""
    (left, top, right, bottom), (height, width) = box, image_hw
    x, y = NEAR * (right - left), NEAR * (bottom - top)
    inner = boxes.new_tensor([left > 0, top > 0, right < width, bottom < height]).bool()
    near = torch.stack(
        [
            boxes[..., 0] < left + x,
            boxes[..., 1] < top + y,
            boxes[..., 2] > right - x,
            boxes[..., 3] > bottom - y,
        ],
        dim=-1,
    )
    return (near & inner).any(-1)


def to_frame(scored: ScoredBoxes, image_hw: tuple[int, int], seen_hw: tuple[int, int]) -> ScoredBoxes:
    """What is in pixels of the image, in the frame in which the whole image was seen."""
    factors = scored.boxes.new_tensor([seen_hw[1] / image_hw[1], seen_hw[0] / image_hw[0]] * 2)
    return scored._replace(boxes=scored.boxes * factors)


def join_tiles(tiles: Sequence[Sequence[Sequence[ScoredBoxes]]]) -> list[list[ScoredBoxes]]:
    """Boxes of T tiles, V looks at each, and N images, as those of V looks at N images."""
    return [
        [ScoredBoxes(*map(torch.cat, zip(*of_image, strict=True))) for of_image in zip(*of_look, strict=True)]
        for of_look in zip(*tiles, strict=True)
    ]
