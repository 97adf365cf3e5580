from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resdet.detection import level_nms
from resdet.detection.level_nms import all_at_once, one_by_one, survivors


def boxes_of(generator: torch.Generator, groups: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """On whole pixels, so that many are equal, touch, or have no area; and scores with ties."""
    corner, size = (torch.randint(0, n, (groups, count, 2), generator=generator).float() for n in (20, 12))
    scores = torch.randint(0, 30, (groups, count), generator=generator) / 30
    return torch.cat([corner, corner + size], -1), scores


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 60), st.sampled_from([0.0, 0.25, 0.5, 0.625, 1.0]))
@settings(deadline=None)
# Thresholds that float32 has exactly: torchvision compares an IoU in float32 with a threshold in float64.
def test_all_at_once_is_the_greedy_order(seed, groups, count, iou):
    boxes, scores = boxes_of(torch.Generator().manual_seed(seed), groups, count)
    assert torch.equal(all_at_once(boxes, scores, iou), one_by_one(boxes, scores, iou))


def test_long_chains_and_several_parts(monkeypatch):
    # Each box overlaps the next two by 0.82 and 0.67: which stay hangs on all before. Rounds: half as many as boxes.
    x = torch.arange(60.0)[None].expand(3, -1)
    boxes = torch.stack([x, torch.zeros_like(x), x + 10, torch.ones_like(x)], -1)
    scores = torch.linspace(1, 0.1, 60)[None].repeat(3, 1)
    wanted = torch.zeros(60, dtype=torch.bool).index_fill_(0, torch.arange(0, 60, 2), True)
    for pairs in (level_nms.PAIRS, 1):
        monkeypatch.setattr(level_nms, "PAIRS", pairs)
        assert torch.equal(all_at_once(boxes, scores, 0.7), wanted.expand(3, -1))


@pytest.mark.parametrize("pretended", [False, True])
def test_levels_and_images_never_touch(monkeypatch, pretended):
    generator = torch.Generator().manual_seed(0)
    levels = [boxes_of(generator, 2, count) for count in (50, 30, 1)]
    boxes, scores = ([level[i] for level in levels] for i in (0, 1))
    wanted = torch.cat([one_by_one(b, s, 0.5) for b, s in levels], 1)
    if pretended:  # the way of a GPU
        monkeypatch.setattr(level_nms, "_together", lambda scores: True)
    assert torch.equal(survivors(boxes, scores, 0.5), wanted)
    assert 0 < wanted.sum() < wanted.numel()
