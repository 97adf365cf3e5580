from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.detection.faster_rcnn import FasterRCNN, LastLevel
from resdet.detection.postprocess import score_regions, suppress, to_original
from resdet.structures import Target

K = 3


def small_net(**settings) -> FasterRCNN:
    """A narrow pyramid on ResNet-18 at half the width, everything learning, with outputs that vary."""
    torch.manual_seed(0)
    settings = {"class_agnostic": False, "frozen_stages": 0, "frozen_batchnorm": False, "shorter_side": 64} | settings
    net = faster_rcnn_fpn(
        backbone="resnet18-half",
        num_classes=K,
        longer_side=128,
        anchor_sizes=(8, 16, 32, 64, 128),
        pyramid_channels=16,
        head_width=16,
        train_proposals=(50, 40),
        test_proposals=(50, 30),
        rois_per_image=24,
        **settings,
    )
    for layer, std in (
        (net.rpn.head.conv, 0.1),
        (net.rpn.head.objectness, 0.5),
        (net.rpn.head.deltas, 0.05),
        (net.roi_head.class_logits, 1.0),
        (net.roi_head.box_deltas, 0.2),
    ):
        nn.init.normal_(layer.weight, std=std)
    return net


def noise(*hw: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def target(boxes, labels, ignore=None) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), ignore, 0, (64, 64))


NOTHING = target([], [])


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_a_batch_is_its_images(class_agnostic):
    # Alone and together every image is padded to 64 x 96: what a net sees beyond an image's edge is its padding.
    net = small_net(class_agnostic=class_agnostic).eval()
    images = [noise(64, 96), noise(50, 70, seed=1), noise(130, 190, seed=2)]
    together = net.predict(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = net.predict([image])
        assert len(found.boxes) > 5
        assert_close(tuple(alone), tuple(found), rtol=1e-4, atol=1e-3)


def test_detections_are_of_the_file():
    net = small_net(max_per_image=10, score_threshold=0.2).eval()
    height, width = 90, 130
    (found,) = net.predict([noise(height, width)])
    assert 0 < len(found.boxes) <= 10
    assert (found.scores.diff() <= 0).all() and (found.scores > 0.2).all()
    assert found.boxes.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert found.labels.min() >= 0 and found.labels.max() < K
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([width, height, width, height])).all()
    assert found.boxes.max() > 96  # beyond the 64 x 92 that the net saw
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_the_stages_are_predict():
    net = small_net().eval()
    image = noise(80, 100)
    with torch.no_grad():
        batch = net.preprocess([image])
        features = net.features(batch.pixels)
        assert [f.shape[-1] for f in features] == [24, 12, 6, 3, 2]  # of 96 px, finest first
        proposals = net.propose(features, batch.limits())
        context = net.context(features, batch.limits())
        images = torch.zeros(proposals.boxes.shape[1], dtype=torch.long)
        vectors = net.embed(features, proposals.boxes[0], images, context)
        scored = score_regions(net.classify(vectors), proposals, batch.limits())
        found = to_original(suppress(scored)[0], batch.input_hw[0], (80, 100))
    assert_close(tuple(found), tuple(net.predict([image])[0]))
    seen, _ = net.score([image])
    assert_close(tuple(seen[0]), tuple(scored[0]))
    assert net.num_classes == K and seen[0].probabilities.shape[1] == K


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_every_weight_learns(class_agnostic):
    net = small_net(class_agnostic=class_agnostic).train()
    targets = [target([[10, 10, 40, 40], [30, 20, 60, 60]], [0, 2]), NOTHING]
    losses = net.loss([noise(64, 64), noise(64, 80, seed=1)], targets)
    assert set(losses) == {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box"}
    assert all(value.isfinite() and value > 0 and value.dim() == 0 for value in losses.values())
    sum(losses.values()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


@pytest.mark.parametrize(
    "targets",
    [[NOTHING, NOTHING], [target([[0, 0, 64, 64]], [1], [True])] * 2],
    ids=["no objects", "only a crowd"],
)
def test_images_without_objects_train(targets):
    net = small_net().train()
    losses = net.loss([noise(64, 64), noise(64, 64, seed=1)], targets)
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_rpn_box"] == 0 and losses["loss_box"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_sample_is_drawn_from_torchs_seed():
    net = small_net(frozen_batchnorm=True).train()
    images, targets = [noise(64, 64)], [target([[10, 10, 40, 40]], [1])]

    def losses(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack(list(net.loss(images, targets).values()))

    first = losses(0)
    assert_close(losses(0), first)
    assert not torch.equal(losses(1), first)


def test_a_few_steps_learn_an_image():
    net = small_net(frozen_batchnorm=True).train()
    images, targets = [noise(64, 64)], [target([[8, 8, 40, 40]], [1])]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    totals = []
    for _ in range(25):
        total = sum(net.loss(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    (found,) = net.eval().predict(images)
    assert found.labels[0] == 1


def test_bfloat16():
    net = small_net()
    images, targets = [noise(64, 64)], [target([[8, 8, 40, 40]], [1])]
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.train().loss(images, targets)
        (found,) = net.eval().predict(images)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert found.boxes.dtype == torch.float32 and found.scores.dtype == torch.float32


def test_last_level():
    maps = [torch.zeros(1), torch.ones(1)]
    assert LastLevel()(maps) == [maps[1]]


@pytest.mark.parametrize("build", [faster_rcnn_c4, faster_rcnn_fpn])
def test_a_net_gone_wrong_tells_by_its_losses(build):
    net = build(backbone="resnet18-half", num_classes=2, shorter_side=64, longer_side=128)
    net.rpn.head.conv.weight.data.fill_(float("nan"))
    truth = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([0]), torch.tensor([False]), 0, (64, 80))
    losses = net.train().loss([torch.zeros(3, 64, 80, dtype=torch.uint8)], [truth])
    assert not torch.stack(list(losses.values())).isfinite().all()
