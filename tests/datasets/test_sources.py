from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from resdet.classification.classifier import Classifier
from resdet.datasets import folder, sources
from resdet.datasets.images import read_reduced
from resdet.datasets.loading import EvaluationShare
from resdet.datasets.views import CenterView, TenCropView, WholeView, collate_views
from resdet.engine.tasks.classification import ClassificationAdapter
from resdet.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven images of many sizes in two classes."""
    place, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, (h, w) in enumerate([(40, 60), (50, 41), (40, 60), (64, 64), (90, 45), (40, 61), (47, 48)]):
        path = place / "val" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(path)
    return str(place)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.avgpool, self.fc = nn.Conv2d(3, 8, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.avgpool(self.conv(x).relu()).flatten(1))


def test_views_of_a_test(root):
    single = sources.test_folder(root=root, crop=32, shorter_side=36)
    assert single.view == CenterView(crop=32, shorter_side=36) and single[0][0].shape == (3, 32, 32)
    ten = sources.test_folder(root=root, crop=32, shorter_side=36, crops=10)
    assert ten.view == TenCropView(crop=32, shorter_side=36) and ten[0][0].shape == (10, 3, 32, 32)
    whole = sources.test_folder(root=root, crop=32, dense=[32, 40], flip=False)
    assert whole.view == WholeView(sides=(32, 40), crop=32, flip=False)
    views, label = whole[0]
    assert [tuple(view.shape) for view in views] == [(3, 32, 48), (3, 40, 60)] and label == 0
    assert sources.test_folder(root=root, dense=256).view == WholeView(sides=(256,))


@pytest.mark.parametrize("ways", [{"crops": 1}, {"crops": 10}, {"dense": (32, 40, 50)}, {"dense": 36, "flip": False}])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_processes_do_not_change_the_scores(root, ways, workers):
    data = sources.test_folder(root=root, crop=32, shorter_side=36, **ways)
    task = ClassificationAdapter(Classifier(Pooled(), window=3)).eval()
    scores = {}
    for batch_size, world in ((1, 1), (3, 1), (2, 2)):
        seen = {}
        for rank in range(world):
            share = EvaluationShare(len(data), batch_size, rank=rank, world=world)
            loader = DataLoader(data, batch_sampler=share, collate_fn=collate_views, num_workers=workers)
            for rows, batch in zip(share, loader, strict=True):
                with torch.no_grad():
                    [(logits, labels)] = task.val_step(batch)
                assert labels.tolist() == [data[row][1] for row in rows]
                seen.update(zip(rows, logits, strict=True))
        scores[batch_size, world] = torch.stack([seen[row] for row in range(len(data))])
    torch.testing.assert_close(scores[3, 1], scores[1, 1])
    torch.testing.assert_close(scores[2, 2], scores[1, 1])


def test_errors(root):
    with pytest.raises(InputError, match=r"crops\n.*found:  5\n.*1 \(the centre\) or 10"):
        sources.test_folder(root=root, crops=5)
    with pytest.raises(InputError, match=r"crops = 10 and dense = \(224, 256\)"):
        sources.test_folder(root=root, crops=10, dense=(224, 256))
    with pytest.raises(InputError, match=r"sides = \(256, 224\)"):
        sources.test_folder(root=root, dense=(256, 224))
    with pytest.raises(InputError, match="crop = 224, shorter side = 200"):
        sources.test_folder(root=root, dense=(200, 256))


def test_large_photographs_are_decoded_reduced(tmp_path, monkeypatch):
    path = tmp_path / "train" / "a" / "0.jpg"
    path.parent.mkdir(parents=True)
    y, x = np.mgrid[0:400, 0:600]
    Image.fromarray(np.stack([x / 3, y / 2, (x + y) / 5], -1).astype(np.uint8)).save(path, quality=95)
    seen = []
    monkeypatch.setattr(folder, "read_reduced", lambda *given: seen.append(read_reduced(*given)) or seen[-1])
    views = []
    for reduce in (False, True):
        data = sources.training_folder(root=str(tmp_path), crop=64, shorter_side=(80, 100), colour_std=0, reduce=reduce)
        views.append(data[0, 5][0].float())
    assert [image.shape for image, _ in seen] == [(400, 600, 3), (100, 150, 3)]  # 100 is the largest shorter side
    assert (views[0] - views[1]).abs().mean() < 2
