from __future__ import annotations

from dataclasses import replace

import torch

from resdet.engine.config import load_config
from resdet.engine.experiment import data_loader
from resdet.engine.settings import Loader


def test_one_validation_after_the_other_has_the_same_workers(det_config):
    config = load_config(det_config)
    data = config.task.test_data(config)
    loader = data_loader(data, Loader(workers=1), kept=True)
    first = [(images, targets) for images, targets in loader]
    workers = [worker.pid for worker in loader._iterator._workers]
    second = [(images, targets) for images, targets in loader]
    assert [worker.pid for worker in loader._iterator._workers] == workers
    assert len(first) == len(data)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    loader._iterator._shutdown_workers()


def test_large_files_are_reduced_for_training_alone_and_on_request(det_config):
    config = load_config(det_config)
    side = config.model.settings.shorter_side
    side = side if isinstance(side, int) else max(side)
    assert config.task.training_data(config).least_side is None
    config = load_config(det_config, ["loader.reduce=true"])
    assert config.task.training_data(config).least_side == side  # flips keep the whole image
    assert config.task.test_data(config).least_side is None
    config = replace(config, augmentation=("crop",))  # may keep half of a side
    assert config.task.training_data(config).least_side == 2 * side
