"""The benchmark compares like with like and adds up right. No time is asserted."""

import time

import torch

from resdet import benchmark


def test_row_takes_medians_and_the_median_of_the_ratios(monkeypatch):
    # ours, theirs in turn: warm-ups, then (1, 2), (3, 4), (9, 6): ratios 0.5, 0.75, 1.5
    clock = iter([1.0, 2.0, 3.0, 4.0, 9.0, 6.0])
    monkeypatch.setattr(benchmark, "_seconds", lambda function: next(clock))
    row = benchmark._row("work", lambda: None, lambda: None, runs=3)
    assert (row.ours, row.torchvision, row.ratio, row.runs) == (3.0, 4.0, 0.75, 3)


def test_seconds_measures_the_call():
    assert benchmark._seconds(lambda: time.sleep(0.02)) >= 0.02


def test_both_nets_have_the_same_work_to_do():
    ours, theirs = benchmark.pair(64, 64)
    count = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (ours, theirs)]
    # The background row of torchvision's box regression (4 x 1024 + 4 numbers) has no place in ours.
    assert count[1] - count[0] == 4 * 1024 + 4
    images, targets = benchmark.images_and_targets(2, (64, 64))
    assert len(images) == len(targets) == 2
    assert all((t.boxes[:, 2:] > t.boxes[:, :2]).all() and (t.boxes[:, 2:] <= 64).all() for t in targets)


def test_one_inference_is_timed_end_to_end():
    row = benchmark.time_inference((64, 96), runs=1)
    assert row.ours > 0 and row.torchvision > 0 and row.work == "inference 64x96"
    assert abs(row.ratio - row.ours / row.torchvision) < 1e-9


def test_a_forked_reader_of_lists_copies_pages():
    table = [[float(i)] for i in range(200_000)]  # each visit writes a reference count, and so copies its page
    block = torch.zeros(200_000).numpy()
    lists = benchmark._private_growth_mib(lambda: [row[0] for row in table] and None)
    arrays = benchmark._private_growth_mib(lambda: float(block.sum()) and None)
    assert lists > arrays + 4
