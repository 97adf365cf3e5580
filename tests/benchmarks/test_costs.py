from __future__ import annotations

import pytest

from resdet import cli
from resdet.benchmarks.costs import training_cost
from resdet.errors import InputError


def config(folder, cls_config, crop):
    path = folder / "cost.py"
    text = cls_config.read_text().replace("crop=32, shorter_side=(32, 40)", f"crop={crop}, shorter_side=({crop}, 300)")
    path.write_text(text.replace('unit="step", length=6, validate_every=6', "length=2, validate_every=1"))
    return path


def test_hours_follow_from_the_rate(cls_config, tmp_path):
    # 50,000 images of 32 pixels in batches of 8 are 6,250 steps an epoch; two epochs are 100,000 images.
    cost = training_cost(config(tmp_path, cls_config, 32), batch_size=4, runs=1)
    assert (cost.side, cost.batch_size, cost.steps) == (32, 4, 12_500)
    assert cost.hours == pytest.approx(100_000 / cost.images_per_second / 3600)
    assert cost.images_per_second > 0


def test_what_has_no_cost(cls_config, det_config, tmp_path):
    with pytest.raises(InputError, match=r"train_data.crop = 40\n.*32, 224, 176"):
        training_cost(config(tmp_path, cls_config, 40), batch_size=4)
    with pytest.raises(InputError, match="a classification config"):
        training_cost(det_config, batch_size=4)


def test_the_tool(cls_config, tmp_path, capsys):
    path = config(tmp_path, cls_config, 32)
    cli.benchmark(["cls", "--configs", str(path), "--runs", "1", "--batch-size", "2"])
    assert "12500" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--configs"):
        cli.benchmark(["cls"])
