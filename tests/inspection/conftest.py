"""Two made results files on the tiny data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def made_results(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """The first with poor boxes, wrong classes and noise; the second is sound, without the last object."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("results")
    content = json.loads(tiny.val.read_text())
    ids = [row["id"] for row in content["categories"]]
    poor, sound = [], []
    for number, row in enumerate(content["annotations"]):
        plain = {key: row[key] for key in ("image_id", "category_id", "bbox")}
        x, y, w, h = row["bbox"]
        sound.append({**plain, "score": 0.9})
        poor.append({**plain, "score": 0.5})
        if number % 2:
            poor[-1]["bbox"] = [x + w / 2, y, w, h]
        poor.append({**plain, "category_id": int(rng.choice(ids)), "score": 0.4})
        poor.append({**plain, "bbox": [*rng.uniform(0, 40, 2).tolist(), 9, 9], "score": float(rng.uniform(0.1, 0.7))})
    paths = folder / "poor.json", folder / "sound.json"
    for path, rows in zip(paths, (poor, sound[:-1]), strict=True):
        path.write_text(json.dumps(rows))
    return paths
