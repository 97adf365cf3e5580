"""What only a GPU can show. Elsewhere every test here is skipped."""

from __future__ import annotations

import copy
import json
import time
import warnings

import pytest
import torch
import torchvision

from resdet.classification.build import classifier
from resdet.datasets.cifar import ArrayData
from resdet.datasets.resident import CropFlip, ResidentDataset
from resdet.datasets.small_images import ResizedCrop
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.detection.level_nms import one_by_one, survivors
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.tasks.detection import DetectionAdapter
from resdet.engine.train import train
from resdet.structures import Target

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning"),
]
SMALL = {"backbone": "resnet18-half", "num_classes": 5, "frozen_stages": 0, "frozen_batchnorm": False}
BUILDERS = pytest.mark.parametrize("builder", [faster_rcnn_c4, faster_rcnn_fpn])


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in whole float32, so that both processors can be compared."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def batch(count=3):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 128, 160), generator=generator, dtype=torch.uint8) for _ in range(count)]
    boxes = torch.tensor([[10.0, 20, 80, 90], [60, 30, 150, 120]])
    labels, ignore = torch.tensor([1, 4]), torch.zeros(2, dtype=torch.bool)
    return images, [Target(boxes, labels, ignore, i, (128, 160)) for i in range(count)]


def build(builder, **settings):
    torch.manual_seed(0)
    return builder(**SMALL, shorter_side=128, longer_side=192, rois_per_image=32, **settings)


@BUILDERS
def test_maps_losses_and_gradients_are_those_of_the_cpu(builder, monkeypatch):
    # Sampling takes the first of its candidates on both, whose random numbers differ.
    def falling(shape, device):
        return torch.linspace(1, 0, shape[-1], device=device).expand(shape)

    monkeypatch.setattr(torch, "rand", falling)
    here = build(builder).train()
    there = copy.deepcopy(here).cuda()
    images, targets = batch()
    found = []
    for net, device in ((here, "cpu"), (there, "cuda")):
        moved = [t._replace(**{k: getattr(t, k).to(device) for k in ("boxes", "labels", "ignore")}) for t in targets]
        losses = net.loss([image.to(device) for image in images], moved)
        sum(losses.values()).backward()
        stem = next(p for p in net.parameters() if p.requires_grad)
        found.append(({name: float(loss.detach()) for name, loss in losses.items()}, stem.grad.norm().cpu()))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-3)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=2e-2, atol=0)


@BUILDERS
def test_detections_are_those_of_the_cpu(builder):
    here = build(builder, score_threshold=0.0, max_per_image=20).eval()
    there = copy.deepcopy(here).cuda()
    images, _ = batch()
    for ours, theirs in zip(here.predict(images), there.predict([i.cuda() for i in images]), strict=True):
        assert len(ours.scores) == len(theirs.scores) > 0
        torch.testing.assert_close(theirs.scores.cpu(), ours.scores, rtol=1e-3, atol=1e-4)
    together = there.predict([i.cuda() for i in images])
    alone = [there.predict([i.cuda()])[0] for i in images]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)


def test_nms_of_a_batch():
    """The boxes of one call a group, and in far less time than the kernel takes for all in a call (33 to 1, H200)."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand(16, 5, 1000, 2, generator=generator) * 100 + 20
    places = torch.rand(16, 5, 1000, 2, generator=generator) * torch.tensor([1066.0, 800.0])
    boxes, scores = torch.cat([places, places + sides], -1).cuda(), torch.rand(16, 5, 1000, generator=generator).cuda()
    apart = (boxes.double() + 2000 * torch.arange(80, device="cuda").view(16, 5, 1, 1)).flatten(0, 2)
    ways = {
        "together": lambda: survivors(boxes.unbind(1), scores.unbind(1), 0.7),
        "one call": lambda: torchvision.ops.nms(apart, scores.flatten().double(), 0.7),
    }
    seconds = {}
    for name, way in ways.items():
        way()
        torch.cuda.synchronize()
        began = time.perf_counter()
        found = [way() for _ in range(3)]
        torch.cuda.synchronize()
        seconds[name] = (time.perf_counter() - began) / 3
        print(f"{name}: {1000 * seconds[name]:.1f} ms, {found[0].sum() if name == 'together' else len(found[0])} stay")
    wanted = one_by_one(boxes.flatten(0, 1), scores.flatten(0, 1), 0.7)
    assert (ways["together"]() != wanted.view(16, 5000)).sum() < 10  # of 80,000: an overlap may round to either side
    assert seconds["together"] < seconds["one call"] / 3


@BUILDERS
def test_a_step_waits_for_nms_alone(builder):
    """torch's own count of waits, against that on pretended tensors (detection/test_host_waits.py)."""
    task = DetectionAdapter(build(builder)).cuda().train()
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)

    def step():
        losses = task(*task.data_preprocessor(list(batch()), True), mode="loss")
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    assert len(waits) <= 3, [f"{w.filename}:{w.lineno}" for w in waits]  # NMS alone


@pytest.mark.parametrize("augmentation", [CropFlip(4), ResizedCrop(40), None])
def test_resident_batches(augmentation):
    images = torch.randint(0, 256, (50, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ResidentDataset(ArrayData(images, torch.arange(50) % 3, ("a", "b", "c"), "here"), augmentation=augmentation)
    keys = [(i, 7 * i) for i in range(0, 50, 3)]
    (a, b), (c, d) = data.batch(keys, torch.device("cpu")), data.batch(keys, torch.device("cuda"))
    assert c.device.type == "cuda"
    torch.testing.assert_close(c.cpu().int(), a.int(), rtol=0, atol=int(isinstance(augmentation, ResizedCrop)))
    torch.testing.assert_close(d.cpu(), b)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        data.batch(keys, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_classifier_in_every_precision_and_layout(layout, dtype):
    torch.manual_seed(0)
    net = classifier(backbone="resnet18-half", num_classes=10, window=2)
    there = copy.deepcopy(net).cuda().to(memory_format=layout)
    images = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    labels = torch.arange(16) % 10
    expected = float(sum(net.train().loss(images, labels).values()).detach())
    with torch.autocast("cuda", dtype=dtype or torch.float32, enabled=dtype is not None):
        loss = sum(there.train().loss(images.cuda(), labels.cuda()).values())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4 if dtype is None else 0.03)
    assert all(torch.isfinite(p.grad).all() for p in there.parameters())


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.amp=off"],
        ["run.amp=bf16"],
        ["run.amp=fp16"],
        ["run.compile=default"],
        ["run.compile=reduce-overhead", "run.amp=bf16"],
        ["run.ema=0.9", "loader.workers=2"],
    ],
)
@pytest.mark.filterwarnings("default")
def test_training_and_evaluation(det_config, trained, tmp_path, overrides):
    metrics = train(load_config(det_config, overrides), work_dir=tmp_path)
    plain, other = losses(trained), losses(tmp_path)
    assert len(other) == 6 and other[0] == pytest.approx(plain[0], rel=0.05)
    if "run.amp=off" in overrides:
        again = evaluate(load_experiment(load_config(det_config), tmp_path / "last.pth"))
        assert again == pytest.approx(metrics, abs=0.05, nan_ok=True)
    saved = read_checkpoint(tmp_path / "last.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in saved.values() if value.is_floating_point())


def test_classification_with_graphs(cls_config, tmp_path):
    train(load_config(cls_config, ["run.compile=reduce-overhead"]), work_dir=tmp_path / "graphs")
    train(load_config(cls_config), work_dir=tmp_path / "plain")
    assert losses(tmp_path / "graphs")[:3] == pytest.approx(losses(tmp_path / "plain")[:3], rel=0.02)
    assert (tmp_path / "graphs" / "resnet18-half.safetensors").is_file()


def losses(work_dir):
    rows = (work_dir.glob("*/vis_data/scalars.json").__next__()).read_text().splitlines()
    return [row["loss"] for row in map(json.loads, rows) if "loss" in row]
