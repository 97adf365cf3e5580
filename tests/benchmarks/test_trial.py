"""Steps that change nothing, and the largest batch."""

from __future__ import annotations

import pytest
import torch

from resdet.benchmarks import trial as module
from resdet.benchmarks.dry_run import dry_run
from resdet.benchmarks.trial import Trial, largest_by_growth, largest_that_fits, memory_and_largest
from resdet.engine.config import load_config
from resdet.errors import InputError


def test_the_largest_batch_by_trial():
    tried = []

    def fits(size):
        tried.append(size)
        return size <= 37

    assert largest_that_fits(fits, 8, 1000) == 36
    assert tried == [16, 32, 64, 48, 40, 36]  # 40 - 36 is an eighth of 36, rounded down
    assert largest_that_fits(lambda size: size <= 3, 0, 1000) == 3  # 1, 2, not 4, 3
    assert largest_that_fits(lambda size: False, 0, 1000) == 0
    assert largest_that_fits(lambda size: True, 8, 50) == 50
    assert largest_that_fits(lambda size: pytest.fail("not needed"), 8, 8) == 8


def test_the_largest_batch_by_growth():
    # From 2 to 4 images 0.5 GiB more, so 0.25 for each; of 3 GiB 1.5 are left beside 4 images, for 6 more.
    needs = {2: 1.0, 3: 1.3, 4: 1.5}
    assert largest_by_growth(needs, 3.0, 1000) == 10
    assert largest_by_growth(needs, 3.0, 7) == 7
    assert largest_by_growth(needs, 1.3, 1000) == 3  # 0.2 GiB too little for four
    assert largest_by_growth(needs, 0.1, 1000) == 0
    assert largest_by_growth({2: 1.0, 4: 1.0}, 3.0, 1000) == 1000  # nothing to be seen
    assert largest_by_growth({2: 1.0, 4: 1.0}, 0.5, 1000) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_the_largest_images_come_first(det_config, tmp_path, monkeypatch):
    batches = []
    original = Trial.memory
    monkeypatch.setattr(Trial, "memory", lambda trial, n: (batches.append((trial, n)), original(trial, n))[1])
    dry_run(load_config(det_config), work_dir=tmp_path)
    trial = batches[0][0]
    assert [n for _, n in batches] == [2, 4]  # of which 2 is the config's batch
    data = trial.experiment.train_set
    images, _ = trial.largest(len(data) + 2)
    scale = [64 / min(image.shape[1:]) for image in images]  # the shorter side of the net's input
    areas = [(image.shape[1] * s) * (image.shape[2] * s) for image, s in zip(images, scale, strict=True)]
    assert areas[0] == max(areas) > 1.1 * min(areas)
    assert areas[len(data) - 1] == pytest.approx(min(areas), rel=0.01)  # sides are rounded to pixels
    assert torch.equal(images[len(data)], images[0])  # some again


class Stub:
    """A trial whose memory is known."""

    def __init__(self, most):
        self.most = most
        self.experiment = type("Known", (), {"train_set": range(100)})

    def fits(self, size):
        return size <= self.most

    def memory(self, size):
        return size * 1.0, 5.0 + size


def test_a_batch_that_does_not_fit_into_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("P", (), {"total_memory": 2**34}))
    monkeypatch.setattr(
        module, "MemoryMeter", lambda: type("M", (), {"read": lambda self: type("R", (), {"peak": 9.0})})()
    )
    with pytest.raises(InputError, match=r"16, for which 16.0 GiB are not enough\n.*at most 6, with --auto-scale-lr"):
        memory_and_largest(Stub(6), 16)
    assert memory_and_largest(Stub(20), 16) == (9.0, 20)
    with pytest.raises(InputError, match="a larger machine"):
        memory_and_largest(Stub(0), 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_batch_that_does_not_fit_into_memory(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 20.0)  # of which 18 may be used
    assert memory_and_largest(Stub(0), 16) == (21.0, 18)
    with pytest.raises(InputError, match=r"19, for which 18\.0 GiB are not enough\n.*at most 18,"):
        memory_and_largest(Stub(0), 19)


def test_an_exhausted_gpu_is_seen(monkeypatch):
    trial = Trial.__new__(Trial)
    trial.largest = lambda count: count
    optimizer = type("O", (), {"zero_grad": lambda self: None})()
    trial.runner = type("R", (), {"optim_wrapper": optimizer})
    trial.experiment = type("E", (), {"net": torch.nn.Identity()})

    def step(batch):
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trial.step = step
    assert [trial.fits(count) for count in (4, 5)] == [True, False]
