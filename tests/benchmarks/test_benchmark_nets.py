"""Both nets of a pair have the same weights, and so the same work and the same detections."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from foreign_states import Random, detectron2
from torch.testing import assert_close

from resdet.benchmarks import nets
from resdet.benchmarks.frameworks import FRAMEWORKS
from resdet.benchmarks.nets import build_theirs, framework, images_and_targets, ready_for_inference
from resdet.convert.renaming import Foreign
from resdet.errors import InputError

HW = (64, 96)
CPU = torch.device("cpu")
FRAME = framework("torchvision")


@pytest.fixture(scope="module", params=["r50_fpn", "r50_c4"])
def pair(request):
    theirs = build_theirs("torchvision", request.param, HW, CPU)
    return request.param, theirs, FRAME.twin(theirs, request.param, HW)


def test_both_train_as_much(pair):
    name, theirs, ours = pair
    count = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (ours, theirs)]
    # The background row of torchvision's box regression (4 numbers for each input, and 4) has no place in ours.
    assert count[1] - count[0] == 4 * {"r50_fpn": 1024, "r50_c4": 2048}[name] + 4


def test_both_settings_are_the_same(pair):
    name, theirs, ours = pair
    rpn = theirs.rpn
    assert (ours.rpn.train_topk, ours.rpn.test_topk) == (
        (rpn._pre_nms_top_n["training"], rpn._post_nms_top_n["training"]),
        (rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]),
    )
    assert ours.rpn.test_topk.post_nms == 1000
    assert ours.roi_head.batch_size_per_image == theirs.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert theirs.transform.min_size == (64,) and theirs.transform.max_size == 96
    assert theirs.rpn.anchor_generator.num_anchors_per_location()[0] == (15 if name == "r50_c4" else 3)


def test_losses_agree_when_nothing_is_drawn(pair):
    _, theirs, ours = pair
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 0.5
    kept = [(stage, stage.batch_size_per_image, stage.positive_fraction) for stage in (ours.rpn, ours.roi_head)]
    for stage, _, _ in kept:
        stage.batch_size_per_image, stage.positive_fraction = 10**6, 0.5
    images, targets = images_and_targets(1, (64, 64))  # padded to 64x64, where torchvision infers the right strides
    with torch.no_grad():
        expected = FRAME.losses(theirs.train(), images, targets)
        found = ours.train().loss(images, targets)
    for key, other in (
        ("loss_rpn_objectness", "loss_objectness"),
        ("loss_rpn_box", "loss_rpn_box_reg"),
        ("loss_class", "loss_classifier"),
        ("loss_box", "loss_box_reg"),
    ):
        assert_close(found[key], expected[other], rtol=1e-3, atol=1e-5)
    for stage, count, fraction in kept:
        stage.batch_size_per_image, stage.positive_fraction = count, fraction


def test_both_find_the_same(pair):  # the last of the pair's tests: ours is folded
    _, theirs, ours = pair
    images, _ = images_and_targets(1, HW)
    found, expected = ready_for_inference(ours).predict(images)[0], FRAME.detect(theirs.eval(), images)[0]
    assert len(found.boxes) == len(expected.boxes) > 20  # there is something to suppress
    assert len(found.labels.unique()) > 3
    assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    distance = torch.cdist(found.boxes, expected.boxes, p=torch.inf)
    same = (distance < 0.05) & (found.labels[:, None] == expected.labels)
    assert same.any(0).all() and same.any(1).all()


def test_images_and_targets():
    images, targets = images_and_targets(2, HW)
    assert [image.shape for image in images] == [(3, 64, 96)] * 2 and images[0].dtype == torch.uint8
    assert not torch.equal(*images)
    for target in targets:
        assert target.original_hw == HW and len(target.boxes) == len(target.labels) == nets.OBJECTS
        assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
        assert (target.boxes >= 0).all() and (target.boxes <= torch.tensor([96, 64, 96, 64])).all()


@pytest.mark.parametrize("name", ["detectron2", "mmdetection"])
def test_what_is_not_installed_is_told(name):
    if importlib.util.find_spec(FRAMEWORKS[name][0]):
        pytest.skip("it is installed")
    with pytest.raises(InputError, match=rf"--beside {name}\n  found:  No module named '{FRAMEWORKS[name][0]}'"):
        framework(name)


def test_a_foreign_twin_takes_weights_settings_and_size():
    state = detectron2(True, make=Random())
    theirs = SimpleNamespace(state_dict=lambda: state)
    ours = FRAMEWORKS["detectron2"][1].twin(theirs, "r50_fpn", HW)
    assert_close(ours.state_dict()["rpn.head.conv.weight"], state["proposal_generator.rpn_head.conv.weight"])
    assert (ours.preprocess.shorter_side, ours.preprocess.longer_side) == ((64,), 96)
    assert ours.rpn.train_topk == (2000, 1000)
    assert isinstance(Foreign("detectron2", state).state, dict)
