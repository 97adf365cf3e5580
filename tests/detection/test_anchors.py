from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from resdet.detection.anchors import Anchors
from resdet.errors import InputError


def maps(*sides: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.zeros(2, 3, *hw) for hw in sides]


def test_one_level_by_hand():
    # Side 32: ratio 1/2 is 32 * sqrt(2) = 45.25 wide and 22.63 high, halves 22.6 and 11.3, rounded 23 and 11.
    cell = torch.tensor([[-23.0, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    (found,) = Anchors([(32,)], [8])(maps((2, 3)))
    shifts = [(0, 0), (8, 0), (16, 0), (0, 8), (8, 8), (16, 8)]  # (x, y), row by row
    assert_close(found, torch.cat([cell + torch.tensor([x, y, x, y]) for x, y in shifts]))


def test_corners_that_are_not_rounded():
    # Halves of 32 sqrt(2) and 32 / sqrt(2): 22.627 and 11.314.
    wide, high = 22.627417, 11.313708
    cell = torch.tensor([[-wide, -high, wide, high], [-16, -16, 16, 16], [-high, -wide, high, wide]])
    (found,) = Anchors([(32,)], [8], rounded=False)(maps((1, 2)))
    assert_close(found, torch.cat([cell, cell + torch.tensor([8.0, 0, 8, 0])]))
    width, height = (found[:, 2:] - found[:, :2]).T
    assert_close(width * height, torch.full((6,), 32.0**2))


def test_sizes_and_ratios():
    anchors = Anchors([(64, 128, 256)], [16], ratios=(0.5, 2.0))
    assert anchors.per_cell == 6
    (found,) = anchors(maps((1, 1)))
    width, height = (found[:, 2:] - found[:, :2]).T
    assert_close((width * height).sqrt(), torch.tensor([64.0, 128, 256] * 2), rtol=0.02, atol=0)
    assert_close(height / width, torch.tensor([0.5] * 3 + [2.0] * 3), rtol=0.03, atol=0)


def test_equals_torchvisions():
    sizes, ratios = ((32,), (64,), (128,)), (0.5, 1.0, 2.0)
    features = maps((12, 20), (6, 10), (3, 5))
    theirs = AnchorGenerator(sizes, (ratios,) * 3)(ImageList(torch.zeros(2, 3, 96, 160), [(96, 160)] * 2), features)
    assert_close(torch.cat(Anchors(sizes, (8, 16, 32), ratios)(features)), theirs[0])


def test_kept_per_shape():
    anchors = Anchors([(32,), (64,)], [4, 8])
    first = anchors(maps((4, 6), (2, 3)))
    assert anchors(maps((4, 6), (2, 3))) is first
    other = anchors(maps((6, 4), (3, 2)))
    assert other[0].shape == first[0].shape and not torch.equal(other[0], first[0])
    for side in range(1, 200):  # the store does not grow without bound
        assert len(anchors(maps((side, 1), (1, 1)))[0]) == 3 * side
    assert len(anchors._kept) <= 64
    assert_close(anchors(maps((4, 6), (2, 3))), first)


def test_nothing_to_save():
    assert not Anchors([(32,)], [4]).state_dict()


def test_levels_must_agree():
    with pytest.raises(InputError) as caught:
        Anchors([(32,), (64,)], [4, 8, 16])
    assert str(caught.value).splitlines() == [
        "anchor sizes",
        "  found:  2 groups: [(32,), (64,)]",
        "  needed: one group for each of the 3 feature levels",
    ]


def test_strides_as_torchvision_infers_them():
    # 800 pixels: P6 has 13 cells, and 800 // 13 = 61; 1088 pixels: 17 cells, 64.
    sizes, hw = ((32,), (512,)), (800, 1088)
    features = maps((200, 272), (13, 17))
    anchors = Anchors(sizes, (4, 64), inferred_strides=True)
    found = anchors(features)
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2)(ImageList(torch.zeros(2, 3, *hw), [hw] * 2), features)
    assert_close(torch.cat(found), theirs[0])
    steps = found[1].view(13, 17, 3, 4).diff(dim=0)[..., [1, 3]], found[1].view(13, 17, 3, 4).diff(dim=1)[..., [0, 2]]
    assert (steps[0] == 61).all() and (steps[1] == 64).all()
