from __future__ import annotations

from resdet.benchmarks import localization
from resdet.benchmarks.localization import localizer_costs


def test_a_row_for_each_number_of_classes(monkeypatch):
    monkeypatch.setattr(localization, "CLASSES", (2, 5))
    few, many = localizer_costs(backbone="resnet18-half", batch_size=2, runs=1, threads=1)
    assert (few.classes, many.classes) == (2, 5)
    # 9 anchors of 5 numbers, each from 256 channels and a bias, for each further class.
    assert many.parameters - few.parameters == 3 * 9 * 5 * (256 + 1)
    for row in (few, many):
        assert row.loss_seconds > 0 and row.update_seconds > 0 and row.memory > 0
