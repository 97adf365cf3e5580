from __future__ import annotations

import pytest
import torch
from torch import distributed as dist

from resdet.engine import distributed
from resdet.errors import InputError
from resdet.evaluation.localization import LocalizationErrors
from resdet.structures import Localizations, Target

NAN = float("nan")


def truth(boxes: list[list[float]], label: int = 3, ignore: list[bool] | None = None) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.full((len(boxes),), label),
        ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
        image_id=7,
        original_hw=(100, 100),
    )


def pairs(labels: list[int], boxes: list[list[float]]) -> Localizations:
    return Localizations(torch.tensor(labels), torch.tensor(boxes).reshape(-1, 4), torch.ones(len(labels)))


WHOLE, HALF, LESS = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [0.0, 0, 10, 4.9]


def test_overlap_by_hand():
    # IoU of the half box: 50 / 100 = 0.5, which counts; of the lower one 49 / 100, which does not; NaN never does.
    for box, error in ((HALF, 0.0), (LESS, 1.0), ([NAN, 0, 10, 10], 1.0), (WHOLE, 0.0)):
        metric = LocalizationErrors()
        metric.update(torch.tensor(box), None, truth([WHOLE]))
        assert metric.summary() == {"loc/gt_class_error": error, "images": 1}


def test_summary_by_hand():
    metric = LocalizationErrors()
    target = truth([[50.0, 50, 60, 60], WHOLE])  # either box may be found
    # right at once; right class third, and its box is right; right class first with a wrong box, and second with a
    # right one; wrong classes with right boxes; right class in sixth place, which is not looked at
    metric.update(torch.tensor(WHOLE), pairs([3, 1], [WHOLE, WHOLE]), target)
    metric.update(torch.tensor(WHOLE), pairs([1, 2, 3, 4, 5], [LESS, WHOLE, HALF, WHOLE, WHOLE]), target)
    metric.update(torch.tensor(LESS), pairs([3, 3], [LESS, HALF]), target)
    metric.update(torch.tensor(LESS), pairs([1, 2], [WHOLE, WHOLE]), target)
    metric.update(torch.tensor(HALF), pairs([1, 2, 4, 5, 6, 3], [WHOLE] * 6), target)
    assert metric.summary() == {
        "loc/top1_error": 4 / 5,
        "loc/top5_error": 2 / 5,
        "loc/gt_class_error": 2 / 5,
        "cls/top1_error": 3 / 5,
        "cls/top5_error": 2 / 5,
        "images": 5,
    }


def test_only_what_was_asked_appears():
    metric = LocalizationErrors(ks=(1,))
    metric.update(None, pairs([3], [LESS]), truth([WHOLE]))
    assert metric.summary() == {"loc/top1_error": 1.0, "cls/top1_error": 0.0, "images": 1}
    metric.update(None, pairs([], []), truth([WHOLE]))  # no pair at all is a wrong answer
    assert metric.summary()["cls/top1_error"] == 0.5
    metric.update(torch.tensor(WHOLE), None, truth([WHOLE]))
    with pytest.raises(InputError, match="a box for the ground-truth class for 1 of 3 images"):
        metric.summary()


def test_ignored_boxes_are_not_found():
    metric = LocalizationErrors()
    metric.update(torch.tensor(WHOLE), None, truth([WHOLE, [50.0, 50, 60, 60]], ignore=[True, False]))
    assert metric.summary()["loc/gt_class_error"] == 1


def overlap(a: list[float], b: list[float]) -> float:
    w, h = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return w * h / (sum(areas) - w * h)


def test_agrees_with_a_plain_loop():
    generator = torch.Generator().manual_seed(0)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.randint(0, 6, (count, 2), generator=generator).float()
        return torch.cat([corner, corner + torch.randint(3, 9, (count, 2), generator=generator)], dim=1)

    metric, wrong = LocalizationErrors(), dict.fromkeys(("gt", "c1", "c5", "l1", "l5"), 0)
    for _ in range(300):
        count, objects = (int(torch.randint(1, high, (), generator=generator)) for high in (7, 4))
        target = truth(boxes(objects).tolist(), label=2)
        answer = Localizations(torch.randint(0, 6, (count,), generator=generator), boxes(count), torch.ones(count))
        box = boxes(1)[0]
        metric.update(box, answer, target)
        found = [
            (label == 2, label == 2 and any(overlap(b, t) >= 0.5 for t in target.boxes.tolist()))
            for label, b in zip(answer.labels.tolist(), answer.boxes.tolist(), strict=True)
        ]
        wrong["gt"] += not any(overlap(box.tolist(), t) >= 0.5 for t in target.boxes.tolist())
        for k in (1, 5):
            wrong[f"c{k}"] += not any(named for named, _ in found[:k])
            wrong[f"l{k}"] += not any(both for _, both in found[:k])
    expected = [wrong[key] / 300 for key in ("l1", "l5", "gt", "c1", "c5")]
    assert list(metric.summary().values()) == [*expected, 300]
    assert 0 < wrong["c5"] < wrong["l5"] < wrong["l1"] < 300


def _share(rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    metric = LocalizationErrors()
    for _ in range(2 * rank):  # process 0 has no image at all
        metric.update(torch.tensor(WHOLE if rank else LESS), None, truth([WHOLE]))
    for _ in range(2):  # asking twice must not add twice
        assert metric.summary() == {"loc/gt_class_error": 0.0, "images": 2}
    distributed.wait()
    distributed.leave(0)


def test_two_processes(rendezvous):
    torch.multiprocessing.spawn(_share, args=(rendezvous,), nprocs=2)


def test_errors():
    with pytest.raises(InputError, match="no images"):
        LocalizationErrors().summary()
    with pytest.raises(InputError, match=r"image 7\n.*no box that counts"):
        LocalizationErrors().update(torch.tensor(WHOLE), None, truth([WHOLE], ignore=[True]))
    with pytest.raises(InputError, match=r"classes \[1, 2\]"):
        two = truth([WHOLE, HALF])._replace(labels=torch.tensor([1, 2]))
        LocalizationErrors().update(torch.tensor(WHOLE), None, two)
