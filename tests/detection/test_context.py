from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.detection.context import concatenate, image_vectors, no_vectors, whole_images
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.structures import Target

K = 3
WIDTH = {"c4": 256, "fpn": 16}
"""D: channels of conv5_x, and of the two-layer head."""


def small_net(kind: str, *, context: bool = True, **settings) -> FasterRCNN:
    torch.manual_seed(0)
    common = {
        "backbone": "resnet18-half",
        "num_classes": K,
        "context": context,
        "frozen_stages": 0,
        "shorter_side": 64,
        "longer_side": 320,
        "train_proposals": (40, 20),
        "test_proposals": (40, 6),
        "rois_per_image": 8,
    } | settings
    if kind == "c4":
        net = faster_rcnn_c4(anchor_sizes=(16, 32, 64), **common)
    else:
        net = faster_rcnn_fpn(anchor_sizes=(8, 16, 32, 64, 128), pyramid_channels=16, head_width=WIDTH["fpn"], **common)
    nn.init.normal_(net.rpn.head.objectness.weight, std=0.5)
    nn.init.normal_(net.roi_head.class_logits.weight, std=0.1)
    return net


def noise(*hw: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


TARGET = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.tensor([False]), 0, (64, 64))


def test_whole_images_by_hand():
    limits = torch.tensor([[80.0, 60, 80, 60], [50, 90, 50, 90]])  # (W, H, W, H)
    assert_close(whole_images(limits), torch.tensor([[0.0, 0, 80, 60], [0, 0, 50, 90]]))


def test_an_image_is_the_one_region_of_itself():
    def embed(features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        assert features is maps
        return torch.cat([boxes, images[:, None].float()], dim=1)

    maps = [torch.rand(2, 4, 8, 8)]
    vectors = image_vectors(embed, maps, torch.tensor([[80.0, 60, 80, 60], [50, 90, 50, 90]]))
    assert_close(vectors, torch.tensor([[0.0, 0, 80, 60, 0], [0, 0, 50, 90, 1]]))


def test_each_region_gets_the_vector_of_its_image():
    vectors, context = torch.tensor([[1.0], [2], [3]]), torch.tensor([[10.0, 11], [20, 21]])
    joined = concatenate(vectors, context, torch.tensor([1, 0, 1]))
    assert_close(joined, torch.tensor([[1.0, 20, 21], [2, 10, 11], [3, 20, 21]]))
    nothing = no_vectors([torch.rand(2, 4, 8, 8)])
    assert nothing.shape == (2, 0)
    assert torch.equal(concatenate(vectors, nothing, torch.tensor([1, 0, 1])), vectors)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_only_the_last_layers_grow(kind, class_agnostic):
    wide, plain = (small_net(kind, context=c, class_agnostic=class_agnostic).state_dict() for c in (True, False))
    assert wide.keys() == plain.keys()
    grown = {name for name in wide if wide[name].shape != plain[name].shape}
    assert grown == {"roi_head.class_logits.weight", "roi_head.box_deltas.weight"}
    width, columns = WIDTH[kind], 1 if class_agnostic else K
    assert wide["roi_head.class_logits.weight"].shape == (K + 1, 2 * width)
    assert wide["roi_head.box_deltas.weight"].shape == (4 * columns, 2 * width)
    assert plain["roi_head.class_logits.weight"].shape == (K + 1, width)


@pytest.mark.parametrize("kind", ["c4", "fpn"])
@torch.no_grad()
def test_padding_is_not_part_of_the_image(kind):
    net = small_net(kind, pooling="align") if kind == "c4" else small_net(kind)
    net.eval()
    batch = net.preprocess([noise(64, 128), noise(64, 250, seed=1)])
    assert batch.pixels.shape == (2, 3, 64, 256)  # the first is padded by its own width
    limits = batch.limits()
    features = net.features(batch.pixels)
    context = net.context(features, limits)
    assert context.shape == (2, WIDTH[kind])
    far = [f.clone() for f in features]
    for f in far:
        f[0, :, :, f.shape[3] // 2 + 1 :] += 100.0  # interpolation reaches half a cell into the padding
    assert_close(net.context(far, limits), context)
    near = [f.clone() for f in features]
    for f in near:
        f[0, :, :, f.shape[3] // 2 - 1] += 100.0  # the image's last column
    assert not torch.allclose(net.context(near, limits)[0], context[0])
    # Image by image, as a region that covers it.
    for n, (height, width) in enumerate(batch.input_hw):
        pooled = net.roi_head.pooling(features, torch.tensor([[0.0, 0, width, height]]), torch.tensor([n]))
        assert_close(context[n], net.roi_head.embedding(pooled)[0])


class LocalMaps(nn.Module):
    """Maps whose cells see their own pixels alone."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.shapes = list(zip(channels, strides, strict=True))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(pixels, s).repeat(1, -(-c // 3), 1, 1)[:, :c] for c, s in self.shapes]


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("kind", ["c4", "fpn"])
@torch.no_grad()
def test_far_pixels_count_through_context_alone(kind, context):
    net = small_net(kind, context=context).eval()
    net.backbone = LocalMaps(net.backbone.channels, net.backbone.strides)
    region, index = torch.tensor([[2.0, 4, 30, 40]]), torch.zeros(1, dtype=torch.long)

    def classify(image: Tensor) -> tuple[Tensor, Tensor]:
        batch = net.preprocess([image])
        features, limits = net.features(batch.pixels), batch.limits()
        return net.classify(net.embed(features, region, index, net.context(features, limits)))

    image = noise(64, 320)
    changed = image.clone()
    changed[:, :, 224:] = 255
    for before, after in zip(classify(image), classify(changed), strict=True):
        assert torch.equal(before, after) != context
    own = image.clone()
    own[:, 10:30, 10:20] = 255  # the region's own pixels always count
    assert not torch.equal(classify(own)[0], classify(image)[0])


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_an_image_is_embedded_once(kind, context):
    net = small_net(kind, context=context)
    images, rows = [noise(64, 64), noise(64, 64, seed=1)], []
    net.roi_head.embedding.register_forward_hook(lambda _, __, vectors: rows.append(len(vectors)))
    net.train().loss(images, [TARGET, TARGET])
    assert sorted(rows) == [2] * context + [2 * 8]  # 8 regions of each in the loss
    rows.clear()
    net.eval()
    regions = sum(len(scored.boxes) for scored in net.score(images)[0])
    width = max(len(scored.boxes) for scored in net.score(images)[0])
    assert 2 < regions <= 12 and sorted(rows) == sorted(([2] * context + [2 * width]) * 2)
    rows.clear()
    Predictor([net], TestSettings(refine=2)).predict(images)
    assert sorted(rows) == [2] * context + [regions] * 3


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_the_trunk_learns_through_the_context(kind, context):
    net = small_net(kind, context=context).train()
    with torch.no_grad():  # the regions' own vectors say nothing
        net.roi_head.class_logits.weight[:, : WIDTH[kind]] = 0
    losses = net.loss([noise(64, 64), noise(64, 80, seed=1)], [TARGET, TARGET])
    losses["loss_class"].backward()
    for part in (net.backbone, net.roi_head.embedding):
        assert [bool(p.grad is not None and p.grad.abs().sum() > 0) for p in part.parameters()] == (
            [context] * len(list(part.parameters()))
        )


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_every_weight_learns(kind):
    net = small_net(kind).train()
    losses = net.loss([noise(64, 64), noise(64, 80, seed=1)], [TARGET, TARGET])
    sum(losses.values()).backward()
    for layer in (net.roi_head.class_logits, net.roi_head.box_deltas):
        own, of_image = layer.weight.grad.split(WIDTH[kind], dim=1)
        assert own.abs().sum() > 0 and of_image.abs().sum() > 0
