from __future__ import annotations

import pytest
import torch
from torch import distributed as dist

from resdet.engine import distributed
from resdet.errors import InputError
from resdet.evaluation.classification import TopK, ranks, topk_correct

NAN = float("nan")


def test_ranks_and_counts_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4], [3.0, 2.0, 1.0]])
    labels = torch.tensor([1, 2, 2])
    assert ranks(logits, labels).tolist() == [0, 1, 2]
    assert topk_correct(logits, labels, ks=(1, 2, 3)).tolist() == [1, 2, 3]
    assert topk_correct(logits, labels).tolist() == [1, 3]  # five guesses of three classes


def test_ties_and_nan():
    # A constant answer is right for the first class alone; NaN is never right.
    constant = torch.zeros(4, 4)
    assert ranks(constant, torch.arange(4)).tolist() == [0, 1, 2, 3]
    logits = torch.tensor([[NAN, 1.0, 0.0], [NAN, NAN, NAN], [NAN, 1.0, 0.0]])
    assert ranks(logits, torch.tensor([0, 1, 1])).tolist() == [3, 3, 1]
    assert topk_correct(logits, torch.tensor([0, 1, 1]), ks=(1, 5)).tolist() == [0, 1]


def test_agrees_with_topk():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 12, generator=generator)
    labels = torch.randint(0, 12, (50,), generator=generator)
    for k in (1, 5, 11):
        expected = (logits.topk(k).indices == labels[:, None]).any(dim=1).sum()
        assert topk_correct(logits, labels, ks=(k,)).item() == expected


def one_hot(guesses: list[int], num_classes: int) -> torch.Tensor:
    return torch.eye(num_classes)[guesses]


def test_summary_by_hand():
    metric = TopK(7)
    # Guess 0 for labels 0, 0, 4, 6: ranks 0, 0, 4, 6, since equal logits rank by index: top-1 2 of 4, top-5 3 of 4.
    metric.update(one_hot([0, 0, 0], 7), torch.tensor([0, 0, 4]))
    metric.update(one_hot([0], 7), torch.tensor([6]))
    assert metric.summary() == {
        "top1": 0.5,
        "top1_error": 0.5,
        "top5": 0.75,
        "top5_error": 0.25,
        "mean_class_top1": pytest.approx(1 / 3),  # (1 + 0 + 0) / 3 classes with images
        "images": 4,
    }
    rows = metric.per_class("abcdefg")
    assert rows[0] == {"class": "a", "images": 2, "top1": 1.0, "top5": 1.0}
    assert rows[1] == {"class": "b", "images": 0, "top1": None, "top5": None}
    assert rows[4] == {"class": "e", "images": 1, "top1": 0.0, "top5": 1.0}


@pytest.mark.parametrize(("num_classes", "keys"), [(1, {"top1"}), (5, {"top1"}), (6, {"top1", "top5"})])
def test_a_top5_that_cannot_be_wrong_is_left_out(num_classes, keys):
    metric = TopK(num_classes)
    metric.update(torch.zeros(1, num_classes), torch.tensor([0]))
    assert {key for key in metric.summary() if key in ("top1", "top5")} == keys


def test_batches_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(30, 8, generator=generator), torch.randint(0, 8, (30,), generator=generator)
    whole, parts = TopK(8), TopK(8)
    whole.update(logits, labels)
    for part in (slice(0, 1), slice(1, 20), slice(20, 20), slice(20, 30)):
        parts.update(logits[part], labels[part])
    assert whole.summary() == parts.summary()
    assert whole.per_class("abcdefgh") == parts.per_class("abcdefgh")


def _share(rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    metric = TopK(3)
    if rank == 1:  # process 0 has no image at all
        metric.update(one_hot([2, 1, 1], 3), torch.tensor([2, 1, 0]))
    for _ in range(2):  # asking twice must not add twice
        assert metric.summary()["images"] == 3
        assert metric.summary()["top1"] == 2 / 3
    assert metric.per_class("abc")[0]["images"] == 1
    distributed.wait()
    distributed.leave(0)


def test_two_processes(rendezvous):
    torch.multiprocessing.spawn(_share, args=(rendezvous,), nprocs=2)


def test_errors():
    with pytest.raises(InputError, match="no images"):
        TopK(3).summary()
    with pytest.raises(InputError, match=r"shape \(2, 4\)[\s\S]*the data set has 3 classes"):
        TopK(3).update(torch.zeros(2, 4), torch.tensor([0, 1]))
