from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from resdet.engine.publish import _statistics_batches


@pytest.mark.parametrize(("limit", "count"), [(None, 640), (200, 200), (9999, 640)])
def test_the_images_of_statistics_are_mixed(limit, count):
    # As in a folder per class: 64 images of each of ten classes, in that order. An image is its row.
    data = [(torch.full((3, 2, 2), float(row)), row // 64) for row in range(640)]
    settings = SimpleNamespace(publish=SimpleNamespace(statistics_images=limit), loader=SimpleNamespace(workers=0))
    batches = list(_statistics_batches(SimpleNamespace(train_set=data, config=settings)))
    rows = torch.cat([batch[:, 0, 0, 0] for batch in batches]).long()
    assert len(rows) == len(rows.unique()) == count
    for batch in batches:
        assert len((batch[:, 0, 0, 0].long() // 64).unique()) >= min(5, len(batch) // 4)  # in their order: one or two
    again = torch.cat([b[:, 0, 0, 0] for b in _statistics_batches(SimpleNamespace(train_set=data, config=settings))])
    torch.testing.assert_close(again.long(), rows)
