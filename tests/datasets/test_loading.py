from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from resdet.datasets.loading import EvaluationShare, TrainBatches, collate
from resdet.errors import InputError


def sizes(landscape, portrait):
    """Alternating as long as both last."""
    rows = [(10, 20)] * landscape + [(20, 10)] * portrait
    return np.array(rows)[np.random.default_rng(0).permutation(len(rows))]


def take(batches, steps):
    return list(itertools.islice(batches, steps))


def indices(batches):
    return [index for batch in batches for index, _ in batch]


def test_collate_stacks_nothing():
    a, b = torch.zeros(3, 2, 4), torch.zeros(3, 5, 1)
    images, targets = collate([(a, "x"), (b, "y")])
    assert images[0] is a and images[1] is b and targets == ["x", "y"]


def test_smallest_epoch_by_hand():
    batches = TrainBatches(6, 2)
    assert batches.steps_per_epoch == 3  # 6 images in twos
    steps = take(batches, 6)
    assert [len(batch) for batch in steps] == [2] * 6
    assert sorted(indices(steps[:3])) == sorted(indices(steps[3:])) == list(range(6))
    assert indices(steps[:3]) != indices(steps[3:])  # a fresh order
    assert TrainBatches(7, 2).steps_per_epoch == 4


def test_nothing_is_dropped_or_repeated():
    # 5 images in twos: the second epoch starts in the middle of the third batch
    seen = indices(take(TrainBatches(5, 2, seed=4), 10))
    assert [sorted(seen[start : start + 5]) for start in range(0, 20, 5)] == [list(range(5))] * 4


@pytest.mark.parametrize(("landscape", "portrait"), [(13, 8), (8, 13), (40, 4), (10, 10)])
def test_aspect_groups(landscape, portrait):
    hw = sizes(landscape, portrait)
    batches, counts = TrainBatches(len(hw), 2, hw=hw, world=2, seed=1), Counter()
    tall = hw[:, 0] > hw[:, 1]
    for step in range(60):
        members = [index for index, _ in batches.batch(step)]
        members += [index for index, _ in TrainBatches(len(hw), 2, hw=hw, rank=1, world=2, seed=1).batch(step)]
        assert len(set(tall[members])) == 1  # the total batch is of one shape
        counts.update(members)
        for group in (np.flatnonzero(tall), np.flatnonzero(~tall)):
            visits = [counts[index] for index in group]
            assert max(visits) - min(visits) <= 1
    # both groups are visited at the same rate: 240 draws over n images
    for group in (np.flatnonzero(tall), np.flatnonzero(~tall)):
        assert abs(sum(counts[index] for index in group) - 240 * len(group) / len(hw)) <= 4


def test_exact_epochs_with_groups():
    hw = sizes(12, 8)
    seen = indices(take(TrainBatches(20, 4, hw=hw), 10))
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))


def test_small_group_is_not_kept_apart():
    hw = sizes(11, 1)  # or a batch would hold one image four times
    assert all(len({index for index, _ in batch}) == 4 for batch in take(TrainBatches(12, 4, hw=hw), 12))


def test_fewer_images_than_the_batch():
    batch = TrainBatches(3, 4).batch(0)
    assert len(batch) == 4 and {index for index, _ in batch} == {0, 1, 2}


def test_processes_split_the_total_batch():
    hw = sizes(30, 17)
    one = TrainBatches(47, 6, hw=hw, seed=5)
    three = [TrainBatches(47, 2, hw=hw, seed=5, rank=rank, world=3) for rank in range(3)]
    assert {batches.steps_per_epoch for batches in (one, *three)} == {8}
    for step in range(40):
        assert one.batch(step) == [key for batches in three for key in batches.batch(step)]


def test_resume_is_exact():
    hw = sizes(30, 17)
    whole = take(TrainBatches(47, 4, hw=hw, seed=2), 50)
    assert take(TrainBatches(47, 4, hw=hw, seed=2, first_step=31), 19) == whole[31:]
    batches = TrainBatches(47, 4, hw=hw, seed=2)
    assert batches.batch(49) == whole[49] and batches.batch(3) == whole[3]  # in any order
    assert len(TrainBatches(47, 4, hw=hw, first_step=10**9).batch(10**9)) == 4  # and at once


def test_seed_matters():
    assert take(TrainBatches(50, 4, seed=0), 3) != take(TrainBatches(50, 4, seed=1), 3)
    seeds = [seed for batch in take(TrainBatches(4, 4), 50) for _, seed in batch]
    assert len(set(seeds)) == 200  # each visit is augmented afresh


@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_evaluation_share_covers_each_image_once(n, world, grouped):
    hw = np.random.default_rng(n).integers(5, 30, (n, 2)) if grouped else None
    shares = [EvaluationShare(n, 2, hw=hw, rank=rank, world=world) for rank in range(world)]
    batches = [batch for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(shares[0]) == list(shares[0])  # again


def test_evaluation_share_keeps_sizes_apart():
    hw = np.array([(10, 20), (20, 10), (10, 20), (20, 10), (10, 21), (20, 10)])
    assert list(EvaluationShare(6, 2, hw=hw)) == [[0, 2], [4], [1, 3], [5]]
    assert list(EvaluationShare(4, 3)) == [[0, 1, 2], [3]]


def test_a_part_of_a_share_is_spread_over_it():
    share = EvaluationShare(9, 2)  # batches that begin with 0, 2, 4, 6, 8
    assert list(share.thinned(3)) == [[0, 1], [4, 5], [8]]
    assert list(share.thinned(1)) == [[0, 1]]
    assert list(share.thinned(5)) == list(share.thinned(100)) == list(share)
    assert len(share.thinned(3)) == 3 and len(share) == 5


@pytest.mark.parametrize("sampler", [TrainBatches, EvaluationShare])
def test_bad_arguments(sampler):
    with pytest.raises(InputError, match="no images"):
        sampler(0, 1)
    with pytest.raises(InputError, match="batch_size"):
        sampler(1, 0)
    with pytest.raises(InputError, match="2 of 2 processes"):
        sampler(1, 1, rank=2, world=2)
