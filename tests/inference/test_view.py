from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.detection.build import faster_rcnn_fpn
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.inference.view import View, Views, flatten, frame_of, mirror, side
from resdet.structures import ImageBatch

IMAGES = [
    torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for hw in ((48, 64), (100, 70))
]


@pytest.fixture(scope="module")
def net() -> FasterRCNN:
    torch.manual_seed(0)
    net = faster_rcnn_fpn(
        backbone="resnet18-half",
        num_classes=3,
        context=True,
        shorter_side=48,
        longer_side=128,
        anchor_sizes=(8, 16, 32, 64, 128),
        pyramid_channels=8,
        head_width=8,
        test_proposals=(30, 10),
    )
    nn.init.normal_(net.rpn.head.objectness.weight, std=1.0)
    return net.eval().requires_grad_(False)


def test_maps_and_frame_of_a_size(net):
    view = View(net, IMAGES, 96)
    assert view.frame.input_hw == [(96, 128), (137, 96)]  # 100 x 70 by 96 / 70 is 137.1 x 96
    assert view.frame.sample_hw == [(48, 64), (100, 70)]
    assert view.frame.pixels.numel() == 0 and view.frame.pixels.device == view.limits.device  # no memory kept
    assert_close(view.limits, torch.tensor([[128.0, 96, 128, 96], [96, 137, 96, 137]]))
    assert_close(view.features, net.features(net.preprocess(IMAGES, 96).pixels))
    assert View(net, IMAGES).frame.input_hw == [(48, 64), (68, 48)]  # the net's own: 68.6 is cut


def test_to_the_common_frame_and_back(net):
    common, view = View(net, IMAGES).frame, View(net, IMAGES, 96)
    factors = torch.tensor([[128 / 64, 96 / 48] * 2, [96 / 48, 137 / 68] * 2])
    assert_close(view.scale_from(common), factors)
    assert torch.equal(View(net, IMAGES).scale_from(common), torch.ones(2, 4))
    own = net.propose(view.features, view.limits)
    found = view.propose(common)
    for n in range(2):
        boxes, scores = found[n]
        valid = own.valid[n]
        assert 0 < len(boxes) <= 10 and (scores.diff() <= 0).all()
        assert_close(boxes * factors[n], own.boxes[n, valid])
        assert_close(scores, own.scores[n, valid])
        height, width = common.input_hw[n]
        assert boxes.max() > 20 and (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()


def test_vectors_are_the_nets_own(net):
    common, view = View(net, IMAGES).frame, View(net, IMAGES, 96)
    boxes, images = torch.tensor([[0.0, 0, 20, 30], [10, 10, 40, 60], [5, 5, 60, 40]]), torch.tensor([1, 1, 0])
    context = view.context
    assert_close(context, net.context(view.features, view.limits))
    assert context.shape == (2, 8) and not torch.allclose(context[0], context[1])
    vectors = view.embed(boxes, images, context, common)
    for n in range(3):
        image = images[n : n + 1]
        region = boxes[n : n + 1] * view.scale_from(common)[image]
        assert_close(vectors[n : n + 1], net.embed(view.features, region, image, context))
    assert view.embed(boxes[:0], images[:0], context, common).shape == (0, 16)


def test_frame_of():
    batch = ImageBatch(torch.ones(2, 3, 32, 32), [(32, 30), (31, 32)], [(64, 60), (62, 64)])
    frame = frame_of(batch)
    assert frame[1:] == batch[1:] and frame.pixels.numel() == 0
    assert_close(frame.limits(), batch.limits())


def test_flatten_by_hand():
    a, b = torch.full((2, 4), 1.0), torch.full((1, 4), 2.0)
    boxes, images = flatten([a, torch.zeros(0, 4), b])
    assert_close(boxes, torch.cat([a, b]))
    assert images.tolist() == [0, 0, 2]
    boxes, images = flatten([torch.zeros(0, 4)] * 2)
    assert boxes.shape == (0, 4) and images.shape == (0,)


def test_mirror_by_hand():
    boxes = torch.tensor([[10.0, 20, 40, 60], [0, 0, 100, 50]])
    assert_close(mirror(boxes, 100), torch.tensor([[60.0, 20, 90, 60], [0, 0, 100, 50]]))
    assert_close(mirror(mirror(boxes, 100), 100), boxes)
    assert_close(mirror(boxes[:, None].expand(2, 3, 4), 100)[:, 1], mirror(boxes, 100))


def test_side_by_hand():
    assert_close(side(torch.tensor([[0.0, 0, 20, 80], [5, 5, 8, 9], [3, 3, 3, 9]])), torch.tensor([40, 12**0.5, 0]))


def test_views_are_kept(net, monkeypatch):
    views, calls = Views(IMAGES), []
    monkeypatch.setattr(net, "features", lambda pixels, features=net.features: (calls.append(1), features(pixels))[1])
    monkeypatch.setattr(net, "propose", lambda *maps, propose=net.propose: (calls.append(2), propose(*maps))[1])
    first = views.of(net, 96)
    assert views.of(net, 96) is first and calls == [1]
    assert first.proposals is first.proposals and calls == [1, 2]  # at the first use
    other = views.of(net, 96, mirrored=True)
    assert other is not first and calls == [1, 2, 1]
    assert_close(other.features, View(net, [image.flip(-1) for image in IMAGES], 96).features)
    assert set(first.clock.seconds) == {"backbone", "proposals"} and set(other.clock.seconds) == {"backbone"}
    assert min(first.clock.seconds.values()) > 0
