from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from resdet import boxes as box_ops
from resdet.cpu.folding import fold_batchnorm
from resdet.detection.matching import pad_targets
from resdet.detection.pooling import RoIPooling
from resdet.detection.roi_head import (
    Conv5Embedding,
    ConvEmbedding,
    Predictions,
    RoIHead,
    RoISample,
    TwoLayerEmbedding,
)
from resdet.errors import InputError
from resdet.structures import Proposals, Target

K = 3


def head(**settings) -> RoIHead:
    return RoIHead(RoIPooling(2, [4]), TwoLayerEmbedding(4, 2, width=8), num_classes=K, **settings)


def target(boxes, labels, ignore=None) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), ignore, 0, (64, 64))


def proposals(boxes, valid) -> Proposals:
    boxes, valid = torch.tensor(boxes, dtype=torch.float32), torch.tensor(valid)
    return Proposals(boxes * valid[..., None], torch.zeros(valid.shape), valid)


def test_embeddings():
    pooled = torch.rand(5, 4, 2, 2)
    two = TwoLayerEmbedding(4, 2, width=8)
    vectors = two(pooled)
    assert vectors.shape == (5, two.width) and (vectors >= 0).all() and two.width == 8
    expected = two.fc7(two.fc6(pooled.reshape(5, 16)).clamp(min=0)).clamp(min=0)  # channel by channel, as torchvision
    assert_close(vectors, expected)
    assert_close(Conv5Embedding(nn.Identity(), 4)(pooled), pooled.mean((2, 3)))


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_convolutions_before_a_linear_layer(batchnorm, training):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d if batchnorm else None
    theirs = FastRCNNConvFCHead((4, 3, 3), [4, 4], [8], norm_layer=norm).train(training)
    ours = ConvEmbedding(4, 3, width=8, convs=2, batchnorm=batchnorm).train(training)
    state = {k if k.count(".") == 1 else f"convs.{k}": v for k, v in theirs.state_dict().items()}
    ours.load_state_dict({k.replace("3.", "fc6.") if k.count(".") == 1 else k: v for k, v in state.items()})
    pooled = torch.rand(5, 4, 3, 3)
    vectors = ours(pooled)
    assert vectors.shape == (5, ours.width) and ours.width == 8
    assert_close(vectors, theirs(pooled))
    if batchnorm:
        assert_close(ours.convs[1][1].running_mean, theirs[1][1].running_mean)
        with torch.no_grad():
            before = ours.eval()(pooled)
            assert_close(fold_batchnorm(ours)(pooled), before)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())


def test_a_conv_head_has_convolutions():
    with pytest.raises(
        InputError, match=r"of the box head\n  found:  -1\n  needed: 1 or more; 0 for two linear layers"
    ):
        ConvEmbedding(4, 3, convs=-1, batchnorm=False)


@pytest.mark.parametrize(("class_agnostic", "columns"), [(False, K), (True, 1)])
def test_shapes_and_initial_weights(class_agnostic, columns):
    net = head(class_agnostic=class_agnostic)
    features, boxes = [torch.rand(2, 4, 16, 16)], torch.tensor([[0.0, 0, 20, 20], [10, 10, 60, 60], [0, 5, 9, 9]])
    vectors = net.embed(features, boxes, torch.tensor([0, 1, 1]), torch.empty(2, 0))
    assert vectors.shape == (3, 8)
    logits, deltas = net.classify(vectors)
    assert logits.shape == (3, K + 1) and deltas.shape == (3, columns, 4)
    swapped = net.embed([features[0].flip(0)], boxes, torch.tensor([1, 0, 0]), torch.empty(2, 0))
    assert_close(swapped, vectors)
    wide = RoIHead(RoIPooling(2, [4]), TwoLayerEmbedding(4, 2, width=500), num_classes=K, class_agnostic=class_agnostic)
    assert wide.class_logits.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert wide.box_deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)


def test_deltas_of_a_class_lie_together():
    net = head()
    nn.init.zeros_(net.box_deltas.weight)
    with torch.no_grad():
        net.box_deltas.bias.copy_(torch.arange(4.0 * K))
    assert_close(
        net.classify(torch.zeros(1, 8)).deltas[0], torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    )


def test_sample_by_hand():
    truth = pad_targets([target([[0, 0, 10, 10], [30, 30, 60, 60]], [2, 0], [False, True]), target([], [])])
    regions = proposals(
        [
            # the object; a third of it; half inside the ignored one; far off; as far, but not valid
            [[0, 0, 10, 9], [0, 0, 10, 3], [20, 30, 40, 60], [50, 0, 60, 10], [50, 0, 60, 10]],
            [[0, 0, 10, 9], [0, 0, 10, 3], [20, 30, 40, 60], [50, 0, 60, 10], [0, 0, 0, 0]],
        ],
        [[True, True, True, True, False], [True, True, True, True, False]],
    )
    drawn = head(batch_size_per_image=100, positive_fraction=0.5).sample(regions, truth)
    # 5 proposals and 2 places of ground truth for each image
    assert all(len(part) == 14 for part in drawn)
    assert drawn.images.tolist() == [0] * 7 + [1] * 7
    rows = [
        (image, label, tuple(box))
        for image, label, box, used in zip(
            drawn.images.tolist(), drawn.labels.tolist(), drawn.boxes.tolist(), drawn.used.tolist(), strict=True
        )
        if used
    ]
    assert sorted(rows) == [
        (0, 2, (0, 0, 10, 9)),
        (0, 2, (0, 0, 10, 10)),  # the object itself is a candidate; the ignored one is none
        (0, K, (0, 0, 10, 3)),
        (0, K, (50, 0, 60, 10)),
        (1, K, (0, 0, 10, 3)),
        (1, K, (0, 0, 10, 9)),
        (1, K, (20, 30, 40, 60)),
        (1, K, (50, 0, 60, 10)),
    ]
    assert drawn.positive.tolist() == [True, True] + [False] * 12
    assert_close(drawn.matched_gt_boxes[:2], torch.tensor([[0.0, 0, 10, 10]] * 2))


def test_sample_counts():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 200, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 12], dim=2)
    truth = pad_targets([target(boxes[0, :30].tolist(), [1] * 30), target([[0, 0, 1, 1]], [0])])
    drawn = head(batch_size_per_image=32, positive_fraction=0.25).sample(
        Proposals(boxes, torch.zeros(2, 200), torch.ones(2, 200, dtype=torch.bool)), truth
    )
    assert drawn.used.view(2, 32).sum(1).tolist() == [32, 32]
    assert drawn.positive.view(2, 32).sum(1).tolist() == [8, 1]
    assert ((drawn.labels < K) == drawn.positive).all()
    overlap = box_ops.iou(drawn.boxes, drawn.matched_gt_boxes).diagonal()
    assert (overlap[drawn.positive] >= 0.5).all()


@pytest.mark.parametrize(("class_agnostic", "columns"), [(False, K), (True, 1)])
def test_losses_by_hand(class_agnostic, columns):
    region = torch.tensor([[0.0, 0, 10, 10]] * 4)
    regions = RoISample(
        boxes=region,
        images=torch.zeros(4, dtype=torch.long),
        labels=torch.tensor([1, K, K, 0]),
        matched_gt_boxes=torch.tensor([[1.0, 0, 11, 10], [5, 5, 9, 9], [0, 0, 0, 0], [0, 0, 90, 90]]),
        positive=torch.tensor([True, False, False, False]),
        used=torch.tensor([True, True, True, False]),
    )
    logits = torch.zeros(4, K + 1, requires_grad=True)
    deltas = torch.zeros(4, columns, 4)
    deltas[0, 0 if class_agnostic else 1, 0] = 0.25
    deltas.requires_grad_()
    losses = head(class_agnostic=class_agnostic, beta=0.0).losses(Predictions(logits, deltas), regions)
    # 4 equal logits. The goal of the one positive is 1 of 10 px to the right, times 10: dx = 1, and 0.25 was said.
    assert_close(losses["loss_class"], torch.tensor(math.log(4)))
    assert_close(losses["loss_box"], torch.tensor(0.75 / 3))
    assert set(losses) == {"loss_class", "loss_box"}
    sum(losses.values()).backward()
    assert (logits.grad[3] == 0).all() and (logits.grad[:3] != 0).all()  # what is not used carries no loss
    learning = deltas.grad.abs().sum(-1)
    assert learning[0, 0 if class_agnostic else 1] > 0 and (learning > 0).sum() == 1
