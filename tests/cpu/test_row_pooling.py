from __future__ import annotations

import pytest
import torch
import torchvision
from torch.testing import assert_close

from resdet.cpu import row_pooling


def roi_align_rows(feature, rois, side, scale, **how):
    """On one level, in the form of torchvision's function."""
    images = rois[:, 0].long()
    how |= {"strides": [round(1 / scale)], "side": side}
    return row_pooling.roi_align_rows([feature], rois[:, 1:], images, torch.zeros_like(images), **how)


def test_one_bin_by_hand():
    # A 2 x 2 map, one region over all of it, one bin, one point: the centre (1, 1) without the half-pixel shift. Cells
    # are at whole places, so that is the last cell itself; with the shift it is (0.5, 0.5), the mean of the four.
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    rois = torch.tensor([[0.0, 0, 0, 2, 2]])
    assert roi_align_rows(feature, rois, 1, 1.0, samples=1, half_pixel=False).item() == 6.0
    assert roi_align_rows(feature, rois, 1, 1.0, samples=1, half_pixel=True).item() == 3.0


def regions(generator: torch.Generator, count: int) -> torch.Tensor:
    """Inside, across every border, far outside, tiny, empty and inverted ones."""
    corner = torch.rand(count, 2, generator=generator) * 160 - 30
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 90], 1)
    special = [[0.0, 0, 96, 64], [-50, -50, -20, -20], [200, 200, 230, 260], [10, 10, 10.2, 10.1], [5, 5, 5, 5]]
    boxes = torch.cat([boxes, torch.tensor(special)])
    return torch.cat([torch.randint(0, 2, (len(boxes), 1), generator=generator).float(), boxes], 1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize(("side", "samples"), [(7, 2), (14, 1), (3, 3)])
def test_it_is_torchvisions(memory, half_pixel, side, samples):
    generator = torch.Generator().manual_seed(side)
    feature = torch.randn(2, 5, 16, 24, generator=generator).contiguous(memory_format=memory)
    rois = regions(generator, 40)
    ours, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()
    pooled = roi_align_rows(ours, rois, side, 1 / 4, samples=samples, half_pixel=half_pixel)
    expected = torchvision.ops.roi_align(theirs, rois, side, 1 / 4, samples, aligned=half_pixel)
    assert_close(pooled, expected, atol=2e-5, rtol=1e-5)
    gradient = torch.randn(expected.shape, generator=generator)
    pooled.backward(gradient)
    expected.backward(gradient)
    assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_no_regions():
    assert roi_align_rows(torch.rand(1, 4, 8, 8), torch.empty(0, 5), 7, 0.25, samples=2, half_pixel=True).shape == (
        0,
        4,
        7,
        7,
    )


@pytest.mark.parametrize(("side", "every"), [(14, 2), (7, 2), (7, 3)])
def test_bins_left_out(side, every):
    feature = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    rois = regions(torch.Generator().manual_seed(1), 10)
    whole = roi_align_rows(feature, rois, side, 1 / 4, samples=2, half_pixel=True)
    some = roi_align_rows(feature, rois, side, 1 / 4, samples=2, half_pixel=True, every=every)
    assert_close(some, whole[:, :, ::every, ::every], rtol=0, atol=0)


def test_levels_of_a_pyramid():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 64 // s, 96 // s, generator=generator, requires_grad=True) for s in (4, 8, 16)]
    rois = regions(generator, 30)
    images, levels = rois[:, 0].long(), torch.randint(0, 3, (len(rois),), generator=generator)
    how = {"side": 7, "samples": 2, "half_pixel": True}
    pooled = row_pooling.roi_align_rows(features, rois[:, 1:], images, levels, strides=(4, 8, 16), **how)
    single = [
        roi_align_rows(f, rois, 7, 1 / s, samples=2, half_pixel=True) for f, s in zip(features, (4, 8, 16), strict=True)
    ]
    expected = torch.stack(single)[levels, torch.arange(len(rois))]
    assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(p.square().sum(), features) for p in (pooled, expected)]
    assert_close(*gradients, atol=1e-4, rtol=1e-4)
