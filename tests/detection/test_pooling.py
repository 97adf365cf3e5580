from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet.detection.pooling import RoIPooling
from resdet.errors import InputError

STRIDES = (4, 8, 16, 32)


def square(side: float) -> list[float]:
    return [0.0, 0.0, side, side]


@pytest.mark.parametrize(
    ("box", "level"),
    [
        (square(224), 2),  # ImageNet's crop is pooled from P4, index 2
        (square(447), 2),
        (square(448), 3),  # twice the side, one level up
        (square(223), 1),
        (square(112), 1),
        (square(111), 0),
        (square(10), 0),  # would be P-1: the finest there is
        (square(5000), 3),
        ([0, 0, 112, 448], 2),  # the area counts, not a side: sqrt(112 * 448) = 224
        (square(0), 0),  # rows that only fill the shape
    ],
)
def test_levels_by_hand(box, level):
    assert RoIPooling(7, STRIDES).levels(torch.tensor([box])).tolist() == [level]


def test_levels_are_counted_from_the_declared_stride():
    assert RoIPooling(7, (8, 16, 32)).levels(torch.tensor([square(224), square(50)])).tolist() == [1, 0]


def test_each_region_comes_from_its_level_and_image():
    # Level l of image n holds 10 * n + l everywhere; P6 lies beside and is not used.
    features = [
        torch.tensor([0.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 512 // s, 512 // s) + level
        for level, s in enumerate((*STRIDES, 64))
    ]
    boxes = torch.tensor([square(300), square(20), square(500), square(150), square(250), square(30)])
    images = torch.tensor([1, 0, 0, 1, 0, 1])
    pooled = RoIPooling(2, STRIDES)(features, boxes, images)
    assert pooled.shape == (6, 1, 2, 2)
    expected = torch.tensor([12.0, 0, 3, 11, 2, 10])
    assert_close(pooled, expected.view(6, 1, 1, 1).expand(6, 1, 2, 2))


def ramp(side: int) -> torch.Tensor:
    """The value of a cell is its column."""
    return torch.arange(side, dtype=torch.float32).expand(1, 1, side, side).contiguous()


@pytest.mark.parametrize(("half_pixel", "columns"), [(False, (3.0, 5.0)), (True, (2.5, 4.5))])
def test_align_by_hand(half_pixel, columns):
    # Stride 2: the box from 4 to 12 px is from 2 to 6 cells; two bins have their centres at 3 and 5 cells from the
    # map's edge. With half_pixel, cell c has its centre at c + 1/2, so the centres are on columns 2.5 and 4.5.
    pool = RoIPooling(2, [2], half_pixel=half_pixel)
    pooled = pool([ramp(8)], torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]))
    assert_close(pooled[0, 0], torch.tensor(columns).expand(2, 2))


@pytest.mark.parametrize(("samples", "expected"), [(2, 0.0), (4, 0.25), (0, 0.25)])
def test_sampling_points_by_hand(samples, expected):
    # One bin over the cells 2..6 of a map that is 1 on column 4 alone. Two points, on 3 and 5, miss it. Four, on 2.5,
    # 3.5, 4.5 and 5.5, read 0, 1/2, 1/2 and 0; and 0 means one for each cell of the bin, here four.
    feature = (ramp(8) == 4).float()
    pooled = RoIPooling(1, [2], samples=samples)([feature], torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]))
    assert_close(pooled.flatten(), torch.tensor([expected]))


def test_pool_by_hand():
    # The same box is rounded to the cells 2..6, both included: bins of 2.5 cells, 2..4 and 4..6; the greatest counts.
    pooled = RoIPooling(2, [2], method="pool")([ramp(8)], torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]))
    assert_close(pooled[0, 0], torch.tensor([4.0, 6.0]).expand(2, 2))


@pytest.mark.parametrize("method", ["align", "pool"])
@pytest.mark.parametrize("autocast", [False, True])
def test_coordinates_stay_float32_where_features_are_not(method, autocast):
    # Between 256 and 512, bfloat16 has steps of 2: 301 would become 300 (or 302).
    boxes, images = torch.tensor([[301.0, 301, 309, 309]]), torch.tensor([0])
    pool = RoIPooling(2, [1], method=method, half_pixel=True)
    exact = pool([ramp(400)[:, :, :320]], boxes, images)
    feature = (ramp(400)[:, :, :320] - 300).bfloat16()  # small integers, which bfloat16 holds
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pooled = pool([feature], boxes, images)
    assert pooled.dtype == torch.bfloat16
    assert_close(pooled.float() + 300, exact)


def test_gradients_reach_every_level_used():
    features = [torch.randn(1, 2, 256 // s, 256 // s, requires_grad=True) for s in STRIDES]
    boxes = torch.tensor([square(30), square(230), square(150)])
    RoIPooling(3, STRIDES)(features, boxes, torch.zeros(3, dtype=torch.long)).sum().backward()
    sums = [0.0 if f.grad is None else f.grad.sum().item() for f in features]
    # Each region's bins are means: 1 for each of 3 x 3 bins and 2 channels. Nothing from P5.
    assert sums == pytest.approx([18, 18, 18, 0], abs=1e-4)


def test_no_regions():
    features = [torch.zeros(1, 2, 64 // s, 64 // s) for s in STRIDES]
    for strides in (STRIDES, (4,)):
        pooled = RoIPooling(7, strides)(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
        assert pooled.shape == (0, 2, 7, 7)


def test_unknown_method():
    with pytest.raises(InputError) as caught:
        RoIPooling(7, [4], method="crop")
    assert str(caught.value) == "pooling method\n  found:  'crop'\n  needed: 'align' or 'pool'"


@pytest.mark.parametrize("how", [{"method": "pool"}, {"samples": 0}, {"samples": 2}])
def test_bins_left_out(how):
    feature = torch.randn(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    boxes, images = torch.tensor([square(100), [50.0, 20, 300, 310]]), torch.zeros(2, dtype=torch.long)
    whole = RoIPooling(14, [16], **how)([feature], boxes, images)
    some = RoIPooling(14, [16], every=2, **how)([feature], boxes, images)
    assert some.shape == (2, 3, 7, 7)
    assert_close(some, whole[:, :, ::2, ::2])
