from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet.detection import matching
from resdet.detection.matching import NEGATIVE, NEITHER, POSITIVE, match, pad_targets, sample
from resdet.structures import Target


def target(boxes, labels=None, ignore=None) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels, dtype=torch.long)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore, dtype=torch.bool)
    return Target(boxes, labels, ignore, 0, (100, 100))


def test_pad_targets():
    padded = pad_targets([target([[1, 2, 3, 4], [5, 6, 7, 8]], [3, 1], [False, True]), target([])])
    assert_close(padded.boxes, torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]], [[0] * 4] * 2]))
    assert_close(padded.labels, torch.tensor([[3, 1], [0, 0]]))
    assert padded.real.tolist() == [[True, False], [False, False]]
    assert padded.ignore.tolist() == [[False, True], [False, False]]
    alone = pad_targets([target([])])
    assert alone.boxes.shape == (1, 1, 4) and not alone.real.any() and not alone.ignore.any()


def test_match_by_hand():
    # Objects 10 wide from 0 and from 20; candidates of their height, so an IoU is a ratio of lengths.
    truth = pad_targets([target([[0, 0, 10, 10], [20, 0, 30, 10]])])
    x = [(0, 10), (0, 8), (0, 5), (2, 12), (20, 26), (40, 50)]
    candidates = torch.tensor([[a, 0, b, 10] for a, b in x], dtype=torch.float32)
    # IoU: 1, 0.8, 0.5, 8/12 = 0.67, 0.6, 0
    settings = {"positive_iou": 0.7, "background_iou": (0.0, 0.6)}
    found = match(candidates, truth, **settings)
    assert found.kind.tolist() == [[POSITIVE, POSITIVE, NEGATIVE, NEITHER, NEITHER, NEGATIVE]]
    assert found.target[0, :5].tolist() == [0, 0, 0, 0, 1]
    # the second object's best candidate answers for it although 0.6 is too little
    assert match(candidates, truth, **settings, best_for_each=True).kind.tolist() == [
        [POSITIVE, POSITIVE, NEGATIVE, NEITHER, POSITIVE, NEGATIVE]
    ]
    # background only from 0.1 on (Fast R-CNN): the one that touches nothing is neither
    low = match(candidates, truth, positive_iou=0.7, background_iou=(0.1, 0.6))
    assert low.kind.tolist() == [[POSITIVE, POSITIVE, NEGATIVE, NEITHER, NEITHER, NEITHER]]


def test_ignored_regions_by_hand():
    # A crowd from x = 0 to 50: candidates half inside are no background, those less so are; nothing matches it.
    crowd = [0, 0, 50, 10]
    truth = pad_targets([target([crowd, [40, 0, 50, 10]], ignore=[True, False])])
    candidates = torch.tensor([[45.0, 0, 55, 10], [46, 0, 56, 10], crowd, [40, 0, 50, 10]])
    found = match(candidates, truth, positive_iou=0.7, background_iou=(0.0, 0.5))
    # The first two overlap the object by 1/3 and by 0.25: background but for the crowd. The last is the object itself.
    assert found.kind.tolist() == [[NEITHER, NEGATIVE, NEITHER, POSITIVE]]


def test_an_object_nobody_overlaps_takes_nobody():
    truth = pad_targets([target([[500, 500, 510, 510]])])
    found = match(
        torch.tensor([[0.0, 0, 10, 10]]), truth, positive_iou=0.7, background_iou=(0, 0.3), best_for_each=True
    )
    assert found.kind.tolist() == [[NEGATIVE]]


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.randint(0, 30, (count, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(2, 20, (count, 2), generator=generator)], dim=1).float()


def plain_iou(a, b) -> float:
    """In double precision and rounded, as equal IoUs must compare equal."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return round(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared), 6)


def slow_match(candidates, truth: Target, positive_iou, background_iou, best_for_each):
    """One image, one candidate at a time."""
    boxes, ignore = truth.boxes.tolist(), truth.ignore.tolist()
    objects = [n for n in range(len(boxes)) if not ignore[n]]
    kinds, matched = [], []
    for c in candidates:
        best, which = 0.0, 0
        for n in objects:
            if plain_iou(c, boxes[n]) > best:
                best, which = plain_iou(c, boxes[n]), n
        kind = NEGATIVE if background_iou[0] <= best < background_iou[1] else NEITHER
        for n in range(len(boxes)):
            width = min(c[2], boxes[n][2]) - max(c[0], boxes[n][0])
            height = min(c[3], boxes[n][3]) - max(c[1], boxes[n][1])
            inside = max(width, 0) * max(height, 0) / ((c[2] - c[0]) * (c[3] - c[1]))
            if ignore[n] and inside >= 0.5:
                kind = NEITHER
        if best >= positive_iou:
            kind = POSITIVE
        if best_for_each:
            for n in objects:
                top = max(plain_iou(other, boxes[n]) for other in candidates)
                if top > 0 and plain_iou(c, boxes[n]) == top:
                    kind = POSITIVE
        kinds.append(kind)
        matched.append(which)
    return kinds, matched


@pytest.mark.parametrize("best_for_each", [False, True])
@pytest.mark.parametrize("background_iou", [(0.0, 0.3), (0.1, 0.5)])
def test_match_equals_the_slow_way(background_iou, best_for_each):
    generator = torch.Generator().manual_seed(0)
    truths = [
        target(
            random_boxes(count, generator).tolist(), ignore=(torch.rand(count, generator=generator) < crowd).tolist()
        )
        for count, crowd in ((6, 0.4), (0, 0.0), (2, 1.0), (4, 0.0))
    ]
    candidates = torch.stack([random_boxes(60, generator) for _ in truths])
    settings = {"positive_iou": 0.5, "background_iou": background_iou, "best_for_each": best_for_each}
    found = match(candidates, pad_targets(truths), **settings)
    seen = set()
    for n, truth in enumerate(truths):
        kinds, matched = slow_match(candidates[n].tolist(), truth, **settings)
        assert found.kind[n].tolist() == kinds
        overlapping = [row for row, kind in enumerate(kinds) if kind == POSITIVE]
        assert found.target[n][overlapping].tolist() == [matched[row] for row in overlapping]
        seen |= set(kinds)
    assert seen == {POSITIVE, NEGATIVE, NEITHER}
    shared = match(candidates[0], pad_targets(truths), **settings)  # as anchors: one set for all images
    again = match(candidates[:1].expand(4, -1, -1), pad_targets(truths), **settings)
    assert_close(tuple(shared), tuple(again))


def kinds(*counts: tuple[int, int, int]) -> torch.Tensor:
    """(N, M) of shuffled (positives, negatives, neither)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([POSITIVE, NEGATIVE, NEITHER], dtype=torch.int8)
    rows = [values.repeat_interleave(torch.tensor(c)) for c in counts]
    return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])


@pytest.mark.parametrize(
    ("counts", "positives", "negatives"),
    [
        ((10, 90, 0), 4, 12),  # a quarter of 16, filled up with background
        ((2, 98, 0), 2, 14),  # fewer positives than their share
        ((90, 3, 7), 4, 3),  # too little background: places stay unused
        ((0, 0, 100), 0, 0),
    ],
)
def test_sample_counts(counts, positives, negatives):
    kind = kinds(counts, (0, 100, 0))
    drawn = sample(kind, count=16, positive_fraction=0.25)
    assert drawn.rows.shape == drawn.positive.shape == drawn.used.shape == (2, 16)
    assert drawn.positive.sum(1).tolist() == [positives, 0]
    assert drawn.used.sum(1).tolist() == [positives + negatives, 16]
    assert drawn.positive[0, :positives].all()  # they come first
    assert (kind.gather(1, drawn.rows)[drawn.positive] == POSITIVE).all()
    assert (kind.gather(1, drawn.rows)[drawn.used & ~drawn.positive] == NEGATIVE).all()
    assert all(len(row.unique()) == 16 for row in drawn.rows)  # without replacement


def test_few_candidates_are_all_taken():
    drawn = sample(kinds((6, 3, 1)), count=512, positive_fraction=0.25)  # 128 positives are allowed, whatever there is
    assert drawn.rows.shape == (1, 10)
    assert drawn.positive.sum() == 6 and drawn.used.sum() == 9
    assert sample(kinds((6, 4, 0)), count=8, positive_fraction=0.0).positive.sum() == 0
    assert sample(kinds((6, 4, 0)), count=8, positive_fraction=1.0).positive.sum() == 6


def test_every_candidate_has_its_chance():
    torch.manual_seed(0)
    kind = kinds((10, 20, 5))
    times = torch.zeros(35)
    for _ in range(600):
        drawn = sample(kind, count=10, positive_fraction=0.5)
        times.index_add_(0, drawn.rows[0], drawn.used[0].float())
    shares = times / 600
    # 5 of 10 positives, 5 of 20 backgrounds, none of the rest; the deviation of a share is at most 0.02
    expected = torch.tensor([0.25, 0.5, 0.0])[kind[0].long()]  # index -1 is the last
    assert_close(shares, expected, rtol=0, atol=0.09)


@pytest.mark.parametrize("shared", [False, True])
def test_images_that_come_after_each_other(shared, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape):
        corner = torch.rand(*shape, 2, generator=generator) * 80
        return torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator) * 40], -1)

    truth = pad_targets([target(boxes(n).tolist(), ignore=[True] + [False] * (n - 1)) for n in (1, 4, 2, 5, 3)])
    candidates = boxes(60) if shared else boxes(5, 60)
    how = {"positive_iou": 0.5, "background_iou": (0.1, 0.4), "best_for_each": True}
    together = match(candidates, truth, **how)
    monkeypatch.setattr(matching, "PAIRS", 2 * 5 * 60)  # two images at a time
    for a, b in zip(match(candidates, truth, **how), together, strict=True):
        assert_close(a, b, rtol=0, atol=0)
