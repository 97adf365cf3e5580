"""Same weights, same numbers: ``faster_rcnn_fpn`` against torchvision's Faster R-CNN with FPN, stage by stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead

from resdet.backbones.weights import load_exactly
from resdet.convert.states import from_torchvision
from resdet.detection.build import faster_rcnn_fpn
from resdet.structures import Target

K = 5
# torchvision infers an anchor stride as image side // map side, where we declare it. The two agree when the padded
# batch is a multiple of P6's stride, 64, though both pad to multiples of 32 only. Here 130x180 becomes 128x177 and
# 120x90 becomes 170x128, so the batch is padded to 192x192.
SIDES = {"min_size": 128, "max_size": 192}
SIZES = ((130, 180), (120, 90))
# Few proposals: of thousands, some pair would lie so near the NMS threshold that rounding decides.
CUTS = {f"rpn_{place}_nms_top_n_{mode}": 100 for place in ("pre", "post") for mode in ("train", "test")}


def pictures() -> list[torch.Tensor]:
    """Smooth blobs rather than noise, which every filter averages away."""
    generator = torch.Generator().manual_seed(2)
    coarse = [torch.rand(1, 3, 6, 7, generator=generator) * 255 for _ in SIZES]
    zoomed = (nn.functional.interpolate(c, hw, mode="bicubic") for c, hw in zip(coarse, SIZES, strict=True))
    return [z[0].clamp(0, 255).byte() for z in zoomed]


def enliven(net: FasterRCNN) -> FasterRCNN:
    """Random BN statistics, and outputs that vary from place to place: each channel of mean 0 and a set deviation."""
    generator = torch.Generator().manual_seed(1)
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = 0.3 if name.endswith(("bn2", "bn3")) else 1.0  # keeps the sum of the residuals near one
            module.weight.data.uniform_(0.5 * scale, 1.5 * scale, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    head, predictor = net.rpn.head, net.roi_heads.box_predictor
    stages = [((head.cls_logits, 1.5), (head.bbox_pred, 0.3)), ((predictor.cls_score, 2.0), (predictor.bbox_pred, 1.0))]
    for stage in stages:  # the second reads proposals of the first
        seen = {layer: [] for layer, _ in stage}
        hooks = [
            layer.register_forward_hook(lambda layer, _, out, seen=seen: seen[layer].append(out)) for layer, _ in stage
        ]
        with torch.no_grad():
            net.eval()([p / 255 for p in pictures()])
        for hook in hooks:
            hook.remove()
        for layer, deviation in stage:
            values = torch.cat([out.transpose(0, 1).flatten(1) for out in seen[layer]], dim=1)
            factor = deviation / values.std(dim=1)
            layer.weight.data.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.data.sub_(values.mean(dim=1)).mul_(factor)
    return net


def second_version() -> FasterRCNN:
    """The parts of ``fasterrcnn_resnet50_fpn_v2`` on a smaller trunk: it is convolutions that take the time."""
    backbone = _resnet_fpn_extractor(resnet18(weights=None), 3, norm_layer=nn.BatchNorm2d)
    head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d)
    return FasterRCNN(backbone, K + 1, rpn_head=RPNHead(256, 3, conv_depth=2), box_head=head, **SIDES, **CUTS)


@pytest.fixture(scope="module", params=[50, 18, "v2"])
def nets(request):
    """torchvision's and ours with the same weights."""
    torch.manual_seed(0)
    parts = {}
    if request.param == "v2":
        theirs, parts = second_version(), {"rpn_convs": 2, "head_convs": 4, "batchnorm": True}
    elif request.param == 50:
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=K + 1, **SIDES, **CUTS)
    else:
        trunk = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=3
        )
        theirs = FasterRCNN(trunk, K + 1, **SIDES, **CUTS)
    enliven(theirs)
    ours = faster_rcnn_fpn(
        backbone="resnet50" if request.param == 50 else "resnet18",
        num_classes=K,
        shorter_side=SIDES["min_size"],
        longer_side=SIDES["max_size"],
        half_pixel=False,
        box_beta=1 / 9,
        train_proposals=(100, 100),
        test_proposals=(100, 100),
        **parts,
    )
    load_exactly(ours, from_torchvision(theirs.state_dict()), source="torchvision")
    return theirs, ours


def pairing(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """For each row of theirs, the nearest of ours, each of ours taken once: near-ties may have swapped places."""
    assert theirs.shape == ours.shape
    order = torch.cdist(theirs, ours, p=torch.inf).argmin(dim=1)
    assert len(order.unique()) == len(order), "some row of ours answers for two"
    return order


@torch.no_grad()
def test_proposals(nets):
    theirs, ours = (net.eval() for net in nets)
    images, _ = theirs.transform([p / 255 for p in pictures()])
    expected, _ = theirs.rpn(images, theirs.backbone(images.tensors))
    batch = ours.preprocess(pictures())
    assert batch.input_hw == images.image_sizes and batch.pixels.shape[-2:] == (192, 192)
    torch.testing.assert_close(batch.pixels, images.tensors, rtol=0, atol=1e-5)
    found = ours.propose(ours.features(batch.pixels), batch.limits())
    for boxes, valid, reference in zip(found.boxes, found.valid, expected, strict=True):
        assert len(reference) > 50
        boxes = boxes[valid]
        torch.testing.assert_close(boxes[pairing(reference, boxes)], reference, rtol=0, atol=0.01)


def test_detections(nets):
    theirs, ours = (net.eval() for net in nets)
    with torch.no_grad():
        expected = [theirs([p / 255])[0] for p in pictures()]  # together they would be padded to one size
    for found, reference in zip(ours.predict(pictures()), expected, strict=True):
        assert len(reference["boxes"]) > 20 and len(reference["labels"].unique()) == K
        by_class = [  # boxes of different classes far apart
            boxes + 1e4 * labels[:, None]
            for boxes, labels in ((reference["boxes"], reference["labels"] - 1), (found.boxes, found.labels))
        ]
        order = pairing(*by_class)
        torch.testing.assert_close(found.boxes[order], reference["boxes"], rtol=0, atol=0.01)
        torch.testing.assert_close(found.scores[order], reference["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.labels[order], reference["labels"] - 1)  # their background is 0
        assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "one-image-empty"])
def test_losses_and_gradients(nets, empty):
    theirs, ours = (net.train() for net in nets)
    for part in (theirs.backbone, theirs.roi_heads.box_head, ours.neck, ours.roi_head.embedding):
        part.eval()  # without downloaded weights its BN is a plain one, and would use the batch
    # Exhaustive samples on both sides, or each would draw its own.
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 0.5
    for stage in (ours.rpn, ours.roi_head):
        stage.batch_size_per_image, stage.positive_fraction = 10**6, 0.5
    boxes = [
        torch.tensor([[10.0, 20, 90, 100], [60, 5, 170, 60], [100, 90, 130, 125]]),
        torch.tensor([[5.0, 10, 60, 100]]) if not empty else torch.zeros(0, 4),
    ]
    labels = [torch.tensor([0, K - 1, 2]), torch.tensor([1])[: len(boxes[1])]]
    expected = theirs(
        [p / 255 for p in pictures()],
        [{"boxes": b, "labels": k + 1} for b, k in zip(boxes, labels, strict=True)],
    )
    targets = [
        Target(b, k, torch.zeros(len(b), dtype=torch.bool), n, hw)
        for n, (b, k, hw) in enumerate(zip(boxes, labels, SIZES, strict=True))
    ]
    found = ours.loss(pictures(), targets)
    names = {
        "loss_rpn_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_class": "loss_classifier",
        "loss_box": "loss_box_reg",
    }
    assert set(found) == set(names)
    for name, reference in names.items():
        assert expected[reference] > 0
        torch.testing.assert_close(found[name], expected[reference], rtol=1e-4, atol=0)

    for net, losses in ((theirs, expected), (ours, found)):
        net.zero_grad()
        sum(losses.values()).backward()
    gradients = from_torchvision({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    learning = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert len(learning) > 30
    for name, gradient in learning.items():  # by norm, as rounding decides about a ReLU here and there
        error = (gradient - gradients[name]).norm() / gradients[name].norm()
        assert error < 1e-3, f"{name}: {error:.1e}"
