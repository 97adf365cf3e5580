from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.backbones.counting import count
from resdet.backbones.families import family_of
from resdet.backbones.frozen import FrozenBatchNorm
from resdet.backbones.published import publish
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import Trunk, freeze_stages
from resdet.backbones.vgg import VGG, VGGTrunk, from_timm
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import Classifier
from resdet.classification.views import dense_logits
from resdet.errors import InputError

GROUPS = ((4, 4), (4, 5), (5, 5, 6), (6, 6, 7), (7, 7, 8))
BATCHNORM = pytest.mark.parametrize("batchnorm", [False, True])


def tiny(num_classes=3, *, batchnorm=False):
    torch.manual_seed(0)
    net = VGG(GROUPS, num_classes=num_classes, hidden=16, batchnorm=batchnorm)
    for layer in (*net.features, *net.classifier):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, std=0.3)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net


@pytest.fixture
def registered(monkeypatch):
    """Tiny nets under names of their own."""
    names = dict(BACKBONES._entries)
    monkeypatch.setattr(BACKBONES, "_entries", names)
    BACKBONES.register("tiny-vgg", tiny, channels=(5, 6, 7, 8), strides=(2, 4, 8, 16))
    BACKBONES.register("other-vgg", lambda n: tiny(n, batchnorm=True), channels=(5, 6, 7, 8), strides=(2, 4, 8, 16))


def test_configuration_d():
    # Convolutions 3 -> 64 -> 64 | 128, 128 | 256 x 3 | 512 x 3 | 512 x 3 with biases; fc 25088 -> 4096 -> 4096 -> 1000.
    widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    pairs = list(pairwise(widths))
    linear = [(512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)]
    weights = sum(9 * a * b + b for a, b in pairs) + sum(a * b + b for a, b in linear)
    sides = [224] * 2 + [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3
    work = sum(9 * a * b * s**2 for (a, b), s in zip(pairs, sides, strict=True)) + sum(a * b for a, b in linear)
    assert (weights, work) == (138_357_544, 15_470_264_320)  # the paper says 138 million, He et al. 15.3e9
    with torch.device("meta"):
        nets = [BACKBONES.build(name) for name in ("vgg16", "vgg16-bn")]
    assert [count(net, (224, 224)) for net in nets] == [(weights, work), (weights + 2 * sum(widths[1:]), work)]
    assert [(BACKBONES[n].parameters, BACKBONES[n].multiply_adds) for n in ("vgg16", "vgg16-bn")] == [
        count(net, (224, 224)) for net in nets
    ]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in nets[0].modules()) == 0
    assert sum(isinstance(m, nn.BatchNorm2d) for m in nets[1].modules()) == 13
    assert [m.p for m in nets[0].modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    for net, name in zip(nets, ("vgg16", "vgg16-bn"), strict=True):
        trunk = VGGTrunk(net)
        assert trunk.channels == BACKBONES[name].channels == (128, 256, 512, 512)
        assert trunk.strides == BACKBONES[name].strides == (2, 4, 8, 16)


def test_initial_weights():
    torch.manual_seed(0)
    net = VGG(((32, 32), (32,)), num_classes=3, hidden=128, side=4)
    assert net.features[2].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.03)
    assert net.fc6.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 16)), rel=0.03)
    assert net.fc7.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.03)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_order_of_layers():
    net = tiny(batchnorm=True)
    kinds = [type(m) for m in net.features]
    three = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds == [kind for n in (2, 2, 3, 3, 3) for kind in (*three * n, nn.MaxPool2d)]
    assert [type(m) for m in tiny().features] == [k for k in kinds if k is not nn.BatchNorm2d]
    assert (net.fc6, net.fc7, net.fc) == (
        net.classifier[0],
        net.classifier[3],
        net.get_submodule(family_of(net).class_layer),
    )


def test_dropout_only_in_training():
    net, images = tiny(), torch.randn(1, 3, 224, 224)
    assert not torch.equal(net.train()(images), net(images))
    assert torch.equal(net.eval()(images), net(images))


@BATCHNORM
def test_score_map_at_224_is_the_net(batchnorm):
    net = tiny(batchnorm=batchnorm).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        maps, logits = net.score_map(images), net(images)
        assert maps.shape == (2, 3, 1, 1) and logits.std() > 0.01
        assert_close(maps[:, :, 0, 0], logits)
        assert_close(dense_logits(net, images), logits)


def test_score_map_of_a_larger_view():
    net = tiny().eval()
    images = torch.randn(2, 3, 256, 288)
    with torch.no_grad():
        maps, cells = net.score_map(images), net.features(images)
        assert maps.shape == (2, 3, 2, 3)  # 8x9 cells hold 2x3 windows of 7x7
        for y in range(2):
            for x in range(3):
                window = cells[:, :, y : y + 7, x : x + 7]
                assert_close(maps[:, :, y, x], net.classifier(window.flatten(1)))
        assert_close(dense_logits(net, images), maps.mean((2, 3)))
        assert (maps.std((2, 3)) > 1e-3).all()  # places differ


def test_score_map_is_that_of_shifted_crops():
    # With 3x3 kernels that are zero but in the middle no cell sees beyond its own 32x32 pixels, so crops that are 32
    # pixels apart see nothing of their borders, and the map must be theirs exactly.
    net = tiny().eval()
    images = 3 * torch.randn(1, 3, 8, 8).repeat_interleave(32, 2).repeat_interleave(32, 3)
    with torch.no_grad():
        for layer in net.features:
            if isinstance(layer, nn.Conv2d):
                layer.weight *= torch.zeros(3, 3).index_put_((torch.tensor(1), torch.tensor(1)), torch.tensor(3.0))
        maps = net.score_map(images)
        for y in range(2):
            for x in range(2):
                crop = images[:, :, 32 * y : 32 * y + 224, 32 * x : 32 * x + 224]
                assert_close(maps[:, :, y, x], net(crop))
        assert (maps.std((2, 3)) > 1e-3).all()


@pytest.mark.parametrize("hw", [(64, 96), (160, 192)])
def test_views_too_small_for_one_place(hw):
    net, images = tiny().eval(), torch.randn(1, 3, *hw)
    with torch.no_grad():
        assert_close(net.score_map(images)[:, :, 0, 0], net(images))
        assert net.score_map(torch.randn(1, 3, 96, 256)).shape == (1, 3, 1, 2)


def test_score_map_keeps_no_copies():
    net = tiny()
    keys = set(net.state_dict())
    net.score_map(torch.randn(1, 3, 224, 224)).sum().backward()
    assert set(net.state_dict()) == keys and not list(net.buffers())
    assert net.fc6.weight.grad.abs().sum() > 0  # views: the gradient reaches the layers


def test_a_classifier_tests_densely():
    net = Classifier(tiny().eval())
    view = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    with torch.no_grad():
        assert_close(net.predict([[view]]), net.net.score_map(net.normalise(view[None])).mean((2, 3)))


@BATCHNORM
def test_the_trunk(batchnorm):
    net = tiny(batchnorm=batchnorm).eval()
    trunk = VGGTrunk(net)
    assert (trunk.channels, trunk.strides) == ((5, 6, 7, 8), (2, 4, 8, 16))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = trunk(images)
        assert [m.shape[1:] for m in maps] == [(5, 32, 48), (6, 16, 24), (7, 8, 12), (8, 4, 6)]
        assert_close(net.features[-1](maps[-1]), net.features(images))
        pools = [i for i, m in enumerate(net.features) if isinstance(m, nn.MaxPool2d)]
        for found, end in zip(maps, pools[1:], strict=True):
            assert_close(found, net.features[:end](images))
    assert set(trunk.state_dict()) == {key for key in net.state_dict() if key.startswith("features.")}
    assert [m.shape[0] for m in trunk(torch.zeros(0, 3, 64, 64))] == [0] * 4


@BATCHNORM
@pytest.mark.parametrize("frozen", range(6))
def test_freezing_groups(frozen, batchnorm):
    net = tiny(batchnorm=batchnorm)
    trunk = freeze_stages(VGGTrunk(net), frozen)
    convs = [m for m in trunk.features if isinstance(m, nn.Conv2d)]
    first = [0, 2, 4, 7, 10, 13][frozen]  # convolutions of the frozen groups
    assert [m.weight.requires_grad and m.bias.requires_grad for m in convs] == [False] * first + [True] * (13 - first)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in trunk.features)
    assert left == (13 - first if batchnorm else 0)
    assert sum(isinstance(m, FrozenBatchNorm) for m in trunk.features) == (first if batchnorm else 0)
    maps = trunk.train()(torch.randn(2, 3, 64, 64))
    assert maps[-1].requires_grad == (frozen < 5)
    if frozen < 5:
        maps[-1].sum().backward()
        assert [m.weight.grad is not None for m in convs] == [False] * first + [True] * (13 - first)


def test_timm_names():
    state = {
        "features.0.weight": torch.rand(2, 3, 3, 3),
        "pre_logits.fc1.weight": torch.rand(4, 2, 7, 7),
        "pre_logits.fc1.bias": torch.rand(4),
        "pre_logits.fc2.weight": torch.rand(4, 4, 1, 1),
        "pre_logits.fc2.bias": torch.rand(4),
        "head.fc.weight": torch.rand(3, 4),
        "head.fc.bias": torch.rand(3),
        "extra": torch.rand(1),
    }
    found = from_timm(state)
    layers = [f"classifier.{n}.{leaf}" for n in (0, 3, 6) for leaf in ("weight", "bias")]
    assert list(found) == ["features.0.weight", *layers, "extra"]
    assert_close(found["classifier.0.weight"], state["pre_logits.fc1.weight"].reshape(4, 98))
    assert found["classifier.3.weight"].shape == (4, 4)
    assert from_timm(found) == found


def test_files(tmp_path, registered):
    source = tiny(3)
    path = publish(tmp_path / "vgg.safetensors", source.state_dict(), {"backbone": "tiny-vgg"})
    assert_close(init_backbone("tiny-vgg", path, num_classes=3).fc.weight, source.fc.weight)
    features = init_backbone("tiny-vgg", path)
    assert isinstance(features.classifier[6], nn.Identity) and not any("fc" in key for key in features.state_dict())
    assert_close(features.fc6.weight, source.fc6.weight)
    tuned = init_backbone("tiny-vgg", path, num_classes=9, new_classifier=True)
    assert tuned.fc.out_features == 9
    assert_close(tuned.fc7.weight, source.fc7.weight)
    with pytest.raises(InputError, match="class count 3 vs 4"):
        init_backbone("tiny-vgg", path, num_classes=4)
    with pytest.raises(InputError, match=r"found:  weights of backbone 'tiny-vgg'"):
        init_backbone("other-vgg", path)
    torch.save({k: v for k, v in source.state_dict().items() if "classifier" not in k}, tmp_path / "trunk.pth")
    with pytest.raises(InputError, match=r"4 missing \(classifier.0.bias, classifier.0.weight, classifier.3.bias"):
        init_backbone("tiny-vgg", tmp_path / "trunk.pth")  # fc6 and fc7 are wanted, fc8 is not


def test_files_of_timm(tmp_path, registered):
    source = tiny(3)
    state = {key: value for key, value in source.state_dict().items() if key.startswith("features")}
    for number, name, shape in ((0, "pre_logits.fc1", (16, 8, 7, 7)), (3, "pre_logits.fc2", (16, 16, 1, 1))):
        state[f"{name}.weight"] = source.classifier[number].weight.detach().view(shape)
        state[f"{name}.bias"] = source.classifier[number].bias.detach()
    state |= {"head.fc.weight": source.fc.weight.detach(), "head.fc.bias": source.fc.bias.detach()}
    torch.save(state, tmp_path / "timm.pth")
    found = init_backbone("tiny-vgg", tmp_path / "timm.pth", num_classes=3)
    assert_close(found.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert_close(init_backbone("tiny-vgg", tmp_path / "timm.pth").fc7.weight, source.fc7.weight)


def test_error_texts(registered):
    with pytest.raises(InputError, match=r"found:  6\n  needed: 0..5 for this trunk"):
        freeze_stages(VGGTrunk(tiny()), 6)
    with pytest.raises(InputError, match=r"found:  VGG without conv1(.|\n)*needed: a residual net"):
        Trunk(tiny())
    for option in ({"zero_last_bn": True}, {"survival": 0.5}, {"checkpoint": True}):
        with pytest.raises(InputError, match="VGG without layer1"):
            BACKBONES.build("tiny-vgg", **option)
