from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.errors import InputError
from resdet.inference.fusion import fuse
from resdet.structures import Detections


def detections(boxes, scores, labels) -> Detections:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.long))


NOTHING = detections([], [], [])


def test_fuse_by_hand():
    first = detections([[0, 0, 10, 10], [50, 0, 60, 10]], [0.9, 0.5], [0, 0])
    second = detections([[0, 0, 10, 8], [0, 0, 10, 8]], [0.3, 0.2], [0, 1])
    (fused,) = fuse([[first], [second]])
    # IoU 0.8: bottom (0.9 x 10 + 0.3 x 8) / 1.2 = 9.5, score (0.9 + 0.3) / 2 x 2 / 2 = 0.6.
    # What one of two views saw: 0.5 x 1 / 2 = 0.25 and, of class 1, 0.2 x 1 / 2 = 0.1.
    assert_close(fused.boxes, torch.tensor([[0, 0, 10, 9.5], [50, 0, 60, 10], [0, 0, 10, 8]]))
    assert_close(fused.scores, torch.tensor([0.6, 0.25, 0.1]))
    assert fused.labels.tolist() == [0, 0, 1]
    assert_close(fuse([[first], [second]], max_per_image=1)[0].scores, torch.tensor([0.6]))
    assert_close(fuse([[first], [second]], iou=0.85)[0].scores, torch.tensor([0.45, 0.25, 0.15, 0.1]))


def test_the_fused_box_moves_as_members_join():
    views = [[detections([[0, 0, 10, bottom]], [score], [0])] for bottom, score in ((10, 0.6), (7, 0.6), (5.5, 0.3))]
    # The second joins: bottom 8.5. The third overlaps that by 5.5 / 8.5 = 0.647; the founder only by 0.55.
    (fused,) = fuse(views, iou=0.6)
    # Bottom (6 + 4.2 + 1.65) / 1.5 = 7.9, score 1.5 / 3.
    assert_close(fused.boxes, torch.tensor([[0, 0, 10, 7.9]]))
    assert_close(fused.scores, torch.tensor([0.5]))


def test_a_box_joins_the_fused_box_it_overlaps_most():
    # The founders overlap by 6 / 10; the third has 8.5 / 10 with the first and 6 / 8.5 = 0.706 with the second.
    founders = [[0, 0, 10, 10], [0, 0, 10, 6]]
    (fused,) = fuse([[detections([*founders, [0, 0, 10, 8.5]], [0.6, 0.5, 0.3], [0, 0, 0])]], iou=0.65)
    assert_close(fused.boxes, torch.tensor([[0, 0, 10, 6], [0, 0, 10, 9.5]]))  # (6 + 2.55) / 0.9 = 9.5
    assert_close(fused.scores, torch.tensor([0.5, 0.45]))  # one view: no score is cut, the mean is
    (fused,) = fuse([[detections([*founders, [0, 0, 10, 7]], [0.6, 0.5, 0.3], [0, 0, 0])]], iou=0.65)
    assert_close(fused.boxes, torch.tensor([[0, 0, 10, 10], [0, 0, 10, 6.375]]))  # 0.857 with 6: (3 + 2.1) / 0.8
    # At the overlap exactly it does not join.
    (fused,) = fuse([[detections([[0, 0, 10, 10], [0, 0, 10, 5]], [0.6, 0.5], [0, 0])]], iou=0.5)
    assert_close(fused.scores, torch.tensor([0.6, 0.5]))


def test_more_members_than_views_count_as_all_views():
    box = [0, 0, 10, 10]
    (fused,) = fuse([[detections([box, box, box], [0.9, 0.6, 0.3], [0, 0, 0])], [NOTHING]])
    assert_close(fused.scores, torch.tensor([0.6]))  # 1.8 / 3 x min(3, 2) / 2


def test_one_view_of_separate_boxes_is_unchanged():
    boxes = torch.arange(6.0)[:, None] * 40 + torch.tensor([0.1, 0.2, 31.3, 17.7])
    view = [Detections(boxes, torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2, 0.0]), torch.tensor([0, 1, 0, 1, 1, 0])), NOTHING]
    for before, after in zip(view, fuse([view]), strict=True):  # ties keep their order, and a score of 0 its box
        assert_close(tuple(after), tuple(before), rtol=0, atol=0)


def slow_fuse(views: list[Detections], iou: float, most: int):
    """One image, one box at a time; each fused box anew from the list of its members."""
    rows = [(s.item(), k.item(), b.double()) for view in views for b, s, k in zip(*view, strict=True)]
    clusters = []  # founder's row, label, members, fused box
    for i in sorted(range(len(rows)), key=lambda i: (-rows[i][0], i)):
        score, label, box = rows[i]
        best, most_overlap = None, iou
        for cluster in clusters:
            overlap = box_ops.iou(box[None], cluster["box"][None]).item()
            if cluster["label"] == label and overlap > most_overlap:
                best, most_overlap = cluster, overlap
        if best is None:
            best = {"founder": i, "label": label, "members": [], "box": None}
            clusters.append(best)
        best["members"].append((score, box))
        best["box"] = sum(s * b for s, b in best["members"]) / sum(s for s, _ in best["members"])
    answer = []
    for cluster in clusters:
        scores = [s for s, _ in cluster["members"]]
        score = sum(scores) / len(scores) * min(len(scores), len(views)) / len(views)
        answer.append((score, cluster["founder"], cluster["label"], cluster["box"].float()))
    return sorted(answer, key=lambda item: (-item[0], item[1]))[:most], max(map(len, (c["members"] for c in clusters)))


def random_view(seed: int, counts=(25, 0, 12, 1)) -> list[Detections]:
    generator = torch.Generator().manual_seed(seed)
    view = []
    for n, count in enumerate(counts):
        corner = 900 + torch.rand(count, 2, generator=generator) * 25
        boxes = torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=generator) * 10], dim=1)
        scores = torch.rand(count, generator=generator).sort(descending=True).values
        scores[5:8] = scores[5:6]  # ties
        labels = torch.randint(3, (count,), generator=generator) * (n != 2)  # the third image: all of one class
        view.append(Detections(boxes, scores, labels))
    return view


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("most", [100, 5])
def test_fuse_equals_the_slow_way(count, most):
    views = [random_view(seed) for seed in range(count)]
    views[-1][3] = views[0][3]  # the same box twice
    fused = fuse(views, max_per_image=most)
    largest = 0
    for n, answer in enumerate(fused):
        mine = [view[n] for view in views]
        if n == 1:  # no boxes in any view
            assert [tuple(part.shape) for part in answer] == [(0, 4), (0,), (0,)]
            continue
        expected, members = slow_fuse(mine, 0.55, most)
        assert answer.labels.tolist() == [label for _, _, label, _ in expected]
        assert_close(answer.scores, torch.tensor([score for score, _, _, _ in expected]))
        assert_close(answer.boxes, torch.stack([box for _, _, _, box in expected]), rtol=0, atol=2e-4)
        largest = max(largest, members)
        (alone,) = fuse([[part] for part in mine], max_per_image=most)
        assert_close(tuple(alone), tuple(answer))
    assert largest > 2


def test_the_order_of_views_does_not_matter_without_ties():
    views = [[detections([[i, 0, 20 + i, 30]], [0.9 - 0.1 * i], [0])] for i in range(4)]
    assert_close(tuple(fuse(views)[0]), tuple(fuse(views[::-1])[0]))


def test_nothing_to_fuse():
    for fused in fuse([[NOTHING, NOTHING]] * 3):
        assert [tuple(part.shape) for part in fused] == [(0, 4), (0,), (0,)]
        assert fused.labels.dtype == torch.int64 and fused.boxes.dtype == torch.float32


def test_fuse_refuses():
    with pytest.raises(InputError, match=r"(?s)fuse: views.*0 views with no images.*one view or more"):
        fuse([])
    with pytest.raises(InputError, match=r"(?s)fuse: views.*2 views with 1, 2 images"):
        fuse([[NOTHING], [NOTHING, NOTHING]])
    for iou in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"(?s)fuse: iou.*\(0, 1\]"):
            fuse([[NOTHING]], iou=iou)


def test_threshold_and_class_agnostic_fusion():
    # Two views, one box seen by both (0.6 and 0.4: mean 0.5) and one by the first only (0.8: 0.8 x 1 / 2 = 0.4).
    box, other = [0.0, 0, 10, 10], [50.0, 50, 60, 60]
    views = [
        [Detections(torch.tensor([other, box]), torch.tensor([0.8, 0.6]), torch.tensor([1, 0]))],
        [Detections(torch.tensor([box]), torch.tensor([0.4]), torch.tensor([2]))],
    ]
    (apart,) = fuse(views)
    assert_close(apart.scores, torch.tensor([0.4, 0.3, 0.2]))  # of classes 1, 0 and 2
    (joined,) = fuse(views, class_agnostic=True)
    assert_close(joined.scores, torch.tensor([0.5, 0.4]))
    assert joined.labels.tolist() == [0, 1]  # the surer box names the class
    (sure,) = fuse(views, class_agnostic=True, score_threshold=0.4)
    assert sure.labels.tolist() == [0]
