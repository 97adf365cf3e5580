from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.faster_rcnn import Suppression
from resdet.detection.preprocess import Preprocess
from resdet.detection.roi_head import Predictions
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.inference.tiles import NEAR, cut_off, from_tile, join_tiles, tile_boxes, to_frame
from resdet.structures import Proposals, ScoredBoxes


def test_tiles_by_hand():
    # 100 wide, a fifth in common: starts at 0 and 80, and the last moved in from 160 to 130.
    assert tile_boxes((90, 230), 100, 0.2) == [(0, 0, 100, 90), (80, 0, 180, 90), (130, 0, 230, 90)]
    assert tile_boxes((150, 101), 100, 0.0) == [
        (0, 0, 100, 100),
        (1, 0, 101, 100),
        (0, 50, 100, 150),
        (1, 50, 101, 150),
    ]
    assert tile_boxes((100, 200), 100, 0.0) == [(0, 0, 100, 100), (100, 0, 200, 100)]
    assert tile_boxes((100, 100), 100, 0.2) == tile_boxes((30, 99), 100, 0.2) == []


@pytest.mark.parametrize("side", [64, 100, 333])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.89])
@pytest.mark.parametrize("hw", [(64, 65), (401, 90), (500, 1000), (334, 668)])
def test_tiles_cover_the_image(hw, side, overlap):
    tiles = tile_boxes(hw, side, overlap)
    if max(hw) <= side:
        assert tiles == []
        return
    seen = torch.zeros(hw, dtype=torch.int)
    for left, top, right, bottom in tiles:
        assert 0 <= left < right <= hw[1] and 0 <= top < bottom <= hw[0]
        assert (bottom - top, right - left) == (min(side, hw[0]), min(side, hw[1]))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1 and len(set(tiles)) == len(tiles)


@pytest.mark.parametrize(("side", "overlap"), [(100, 0.2), (64, 0.5), (333, 0.1)])
def test_what_is_smaller_than_the_overlap_is_whole_in_a_tile(side, overlap):
    draw, hw = torch.Generator().manual_seed(0), (700, 1000)
    tiles = tile_boxes(hw, side, overlap)
    shared = round(side * overlap)
    spans = 0.1 + torch.rand(500, 2, generator=draw) * (shared - 0.1)
    starts = torch.rand(500, 2, generator=draw) * (torch.tensor([hw[1], hw[0]]) - spans)
    boxes = torch.cat([starts, starts + spans], 1).double()
    inside, uncut = [], []
    for tile in tiles:
        corners = torch.tensor(tile)
        inside.append(((boxes[:, :2] >= corners[:2]) & (boxes[:, 2:] <= corners[2:])).all(1))
        uncut.append(inside[-1] & ~cut_off(boxes, tile, hw))
    assert torch.stack(inside).any(0).all()
    assert not torch.stack(inside).all(1).any()
    smaller = (spans <= shared - 2.01 * NEAR * side).all(1)
    assert torch.stack(uncut).any(0)[smaller].all() and smaller.sum() > 200


def test_from_a_tile_by_hand():
    # The tile (80, 20, 180, 120) was seen at 200 x 200, twice its size: (40, 60, 100, 160) is (20, 30, 50, 80) of it.
    boxes = torch.tensor([[[40.0, 60, 100, 160]], [[1, 60, 100, 160]], [[40, 60, 199, 160]], [[40, 60, 100, 160]]])
    scored = ScoredBoxes(boxes, torch.tensor([[0.9, 0.02], [0.8, 0.1], [0.7, 0.2], [0.01, 0.005]]))
    found = from_tile(scored, box=(80, 20, 180, 120), seen_hw=(200, 200), image_hw=(120, 300), least=0.01)
    assert_close(
        found.boxes, torch.tensor([[[100.0, 50, 130, 100]]])
    )  # the second and third are cut, the last is faint
    assert_close(found.probabilities, torch.tensor([[0.9, 0.02]]))
    # At the image's own edges nothing is cut off.
    found = from_tile(scored, box=(0, 0, 100, 100), seen_hw=(200, 200), image_hw=(100, 100), least=0.5)
    assert_close(found.probabilities, scored.probabilities[:3])


def test_one_class_may_be_cut_and_another_not():
    boxes = torch.tensor([[[0.0, 10, 50, 50], [20, 10, 50, 50]]])
    how = {"box": (100, 0, 200, 100), "seen_hw": (100, 100), "image_hw": (100, 300), "least": 0.0}
    assert from_tile(ScoredBoxes(boxes, torch.tensor([[0.6, 0.4]])), **how).probabilities.tolist() == [
        [0.0, pytest.approx(0.4)]
    ]
    none = from_tile(ScoredBoxes(boxes[:0], torch.zeros(0, 2)), **how)
    assert none.boxes.shape == (0, 2, 4) and none.probabilities.shape == (0, 2)


def test_there_and_back():
    boxes = torch.tensor([[[100.0, 50, 130, 90]]])
    left, top, right, bottom = 80, 20, 180, 120
    seen = ScoredBoxes((boxes - torch.tensor([left, top, left, top])) * 3.5, torch.ones(1, 1))
    how = {"seen_hw": (350, 350), "image_hw": (500, 500), "least": 0.0}
    moved = from_tile(seen, box=(left, top, right, bottom), **how)
    assert_close(moved.boxes, boxes)
    assert_close(to_frame(moved, (500, 500), (250, 1000)).boxes, boxes * torch.tensor([2, 0.5, 2, 0.5]))


def test_tiles_are_joined_by_look_and_image():
    def answer(number: float) -> ScoredBoxes:
        return ScoredBoxes(torch.full((1, 1, 4), number), torch.full((1, 1), number))

    joined = join_tiles([[[answer(1), answer(2)], [answer(3), answer(4)]], [[answer(5), answer(6)], [answer(7)] * 2]])
    assert [[image.probabilities[:, 0].tolist() for image in look] for look in joined] == [
        [[1, 5], [2, 6]],
        [[3, 7], [4, 7]],
    ]
    assert join_tiles([]) == []


class SquareFinder(nn.Module):
    """A detector made by hand: bright patches of whole cells of 8 x 8 input pixels. What is smaller it cannot see."""

    num_classes = 1

    def __init__(self, side: int) -> None:
        super().__init__()
        self.preprocess = Preprocess(side, 4 * side, mean=(0, 0, 0), std=(255, 255, 255))
        self.suppression = Suppression()

    def features(self, pixels: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(pixels.mean(1, keepdim=True), 8)]

    def propose(self, features: list[Tensor], limits: Tensor) -> Proposals:
        boxes, valid = torch.zeros(len(limits), 20, 4), torch.zeros(len(limits), 20, dtype=torch.bool)
        for n, cells in enumerate(features[0][:, 0] > 0.75):
            patches = ndimage.find_objects(ndimage.label(cells.numpy())[0])
            for row, (y, x) in enumerate(patches):
                boxes[n, row] = 8.0 * torch.tensor([x.start, y.start, x.stop, y.stop])
                valid[n, row] = True
        return Proposals(boxes, valid.float(), valid)

    def context(self, features: list[Tensor], limits: Tensor) -> Tensor:
        return torch.zeros(len(limits), 0)

    def embed(self, features: list[Tensor], boxes: Tensor, images: Tensor, context: Tensor) -> Tensor:
        cells = (boxes / 8).round().long().tolist()
        means = [features[0][n, 0, y1:y2, x1:x2].mean() for n, (x1, y1, x2, y2) in zip(images, cells, strict=True)]
        return torch.stack(means)[:, None] if means else torch.zeros(0, 1)

    def classify(self, vectors: Tensor) -> Predictions:
        return Predictions(torch.cat([20 * vectors - 15, 0 * vectors], 1), torch.zeros(len(vectors), 1, 4))


SMALL = torch.tensor([[96.0, 96, 112, 112], [376, 192, 392, 208], [608, 320, 632, 344], [8, 448, 24, 464]])
"""In an image of 480 x 640: four squares, of which a tile of 160 has each whole."""
BAR = torch.tensor([[128.0, 256, 384, 320]])
"""Wider than a tile."""


def scene() -> Tensor:
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    for x1, y1, x2, y2 in torch.cat([SMALL, BAR]).long().tolist():
        image[:, y1:y2, x1:x2] = 255
    return image


@pytest.mark.parametrize(
    "settings", [{}, {"flip": True}, {"vote": 0.5, "refine": 1}, {"flip": True, "merge": "wbf"}], ids=str
)
def test_small_objects_of_a_large_image_are_found_by_tiles_alone(settings):
    # The whole image is seen at a third of its size: squares of 5 and 8 pixels, in no cell of 8 of their own.
    predictors = [Predictor([SquareFinder(160)], TestSettings(**settings, tiles=tiles)) for tiles in (None, 160)]
    (without,), (found,) = (predictor.predict([scene()]) for predictor in predictors)
    assert len(without.boxes) == 1 and box_ops.iou(BAR, without.boxes) > 0.6
    overlap = box_ops.iou(torch.cat([SMALL, BAR]), found.boxes)
    order = overlap.argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4] == list(range(len(found.boxes)))  # no piece of the bar besides
    assert_close(found.boxes[order[:4]], SMALL)  # in the tiles, at their own size, whole cells
    assert overlap[4].max() > 0.6


def test_the_parts_of_what_no_tile_holds_are_dropped():
    net, settings = SquareFinder(160), TestSettings(tiles=160, merge="wbf")
    predictor, seen = Predictor([net], settings), []
    predictor.fuse = lambda looks: seen.append(looks) or Predictor.fuse(predictor, looks)
    predictor.predict([scene()])
    whole, tiles = seen[0]
    assert len(whole[0].boxes) == 1 and len(tiles[0].boxes) == 4
    assert box_ops.iou(BAR / 3, tiles[0].boxes[:, 0]).max() == 0
