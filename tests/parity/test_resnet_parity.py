"""Same weights, same numbers: our nets against torchvision's and timm's, from random weights and BN statistics."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from resdet.backbones import BACKBONES, FPN
from resdet.backbones.custom import residual_net
from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.published import publish
from resdet.backbones.weights import init_backbone, load_exactly, read_weights
from resdet.errors import InputError

DEPTHS = (18, 34, 50, 101, 152)


def filled(build, state=None):
    """A net whose weights are ``state``, or random with every BN different; built without its own initialisation."""
    with torch.device("meta"):
        net = build()
    net.to_empty(device="cpu")
    if state is not None:
        net.load_state_dict(state)
        return net.eval()
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.uniform_(low, high, generator=generator)
            module.num_batches_tracked.zero_()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(std=fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(generator=generator)
    for name, module in net.named_modules():  # keep the sum of up to 50 residuals near one
        if name.endswith(("0.bn2", "0.bn3")) or name.split(".")[-1] == "bn3":
            module.weight.data.mul_(0.3)
    return net.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=DEPTHS)
def reference(request, images):
    """(depth, torchvision's net, its logits)."""
    net = filled(lambda: torchvision.models.get_model(f"resnet{request.param}"))
    with torch.no_grad():
        logits = net(images)
    assert logits.isfinite().all() and 0.1 < logits.std() < 1e3  # neither dead nor exploding
    return request.param, net, logits


def test_logits_of_a_grouped_net(images):
    theirs = filled(lambda: torchvision.models.get_model("resnext50_32x4d"))
    ours = filled(lambda: BACKBONES.build("resnext50_32x4d"), theirs.state_dict())
    timms = filled(lambda: timm.create_model("resnext50_32x4d", pretrained=False), theirs.state_dict())
    with torch.no_grad():
        logits = theirs(images)
        assert 0.1 < logits.std() < 1e3
        torch.testing.assert_close(ours(images), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(timms(images), logits, rtol=1e-5, atol=1e-5)


def test_torchvision_and_timm_logits(reference, images):
    depth, theirs, logits = reference
    with torch.device("meta"):
        ours = BACKBONES.build(f"resnet{depth}")
    ours.to_empty(device="cpu")
    load_exactly(ours.eval(), theirs.state_dict(), source="torchvision")
    timms = filled(lambda: timm.create_model(f"resnet{depth}", pretrained=False), ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(timms(images), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(freeze_batchnorm(ours)(images), logits, rtol=1e-4, atol=1e-4)


def test_stride_on_the_1x1(reference, images):
    depth, net, v1_5 = reference
    if depth < 50:
        pytest.skip("basic blocks have no 1x1")
    ours = filled(lambda: BACKBONES.build(f"resnet{depth}-1x1"), net.state_dict())
    first_blocks = [stage[0] for stage in (net.layer2, net.layer3, net.layer4)]
    with torch.no_grad():
        out = ours(images)
        for block in first_blocks:
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
        caffe = net(images)
        for block in first_blocks:
            block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
    torch.testing.assert_close(out, caffe, rtol=1e-5, atol=1e-5)
    assert (out - v1_5).abs().max() > 0.01  # the same weights mean something else


def test_published_files_load_everywhere(tmp_path, images):
    ours = filled(lambda: BACKBONES.build("resnet18"))
    path = publish(tmp_path / "resnet18.safetensors", ours.state_dict(), {"backbone": "resnet18"})
    state, _ = read_weights(path)
    theirs = torchvision.models.get_model("resnet18")
    theirs.load_state_dict(state)
    timms = timm.create_model("resnet18", checkpoint_path=str(path))
    again = init_backbone("timm/resnet18", path, num_classes=1000)
    with torch.no_grad():
        for net in (theirs, timms, again):
            torch.testing.assert_close(net.eval()(images), ours(images), rtol=1e-5, atol=1e-5)


def test_fpn():
    channels = (8, 16, 24, 32)
    theirs = FeaturePyramidNetwork(channels, 16, LastLevelMaxPool())
    ours = FPN(channels, 16, strides=(4, 8, 16, 32))
    for p in theirs.parameters():
        nn.init.normal_(p)
    names = {"inner_blocks": "lateral", "layer_blocks": "output"}
    state = {}
    for key, value in theirs.state_dict().items():
        kind, level, _, leaf = key.split(".")
        state[f"{names[kind]}.{level}.{leaf}"] = value
    load_exactly(ours, state, source="torchvision's FPN")
    maps = [torch.randn(2, c, s, s + 3) for c, s in zip(channels, (25, 13, 7, 4), strict=True)]
    expected = theirs(OrderedDict((str(i), m) for i, m in enumerate(maps)))
    torch.testing.assert_close(ours(maps), list(expected.values()), rtol=1e-5, atol=1e-5)


def functional_cifar(state, x, *, option="A"):
    """The common CIFAR net, written again: only arithmetic on the weights of a file, pixel padding by hand."""

    def bn(key, x):
        scale = state[f"{key}.weight"] / (state[f"{key}.running_var"] + 1e-5).sqrt()
        return x * scale[:, None, None] + (state[f"{key}.bias"] - state[f"{key}.running_mean"] * scale)[:, None, None]

    def conv(key, x, stride=1):
        weight = state[f"{key}.weight"]
        return torch.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = bn("bn1", conv("conv1", x)).clamp(min=0)
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            key, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = bn(f"{key}.bn1", conv(f"{key}.conv1", x, stride)).clamp(min=0)
            out = bn(f"{key}.bn2", conv(f"{key}.conv2", out))
            if option == "B" and stride == 2:
                out += bn(f"{key}.downsample.1", conv(f"{key}.downsample.0", x, 2))
            elif option != "none":
                quarter = out.shape[1] // 4 if stride == 2 else 0  # 16 channels become 8 zeros, 16, 8 zeros
                out[:, quarter : out.shape[1] - quarter] += x[:, :, ::stride, ::stride]
            x, block = out.clamp(min=0), block + 1
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def renamed(net):
    """A file in the common CIFAR naming, as DataParallel and a training script leave it."""
    return {"state_dict": {f"module.{k.replace('fc.', 'linear.')}": v for k, v in net.state_dict().items()}}


@pytest.mark.parametrize(
    ("name", "option"),
    [(f"cifar-resnet{depth}", "A") for depth in (20, 32, 44, 56)]
    + [("cifar-resnet20-B", "B"), ("cifar-plain20", "none")],
)
def test_common_cifar_naming(tmp_path, name, option):
    file = renamed(filled(lambda: BACKBONES.build(name)))
    torch.save(file, tmp_path / "common.th")
    state = {key.removeprefix("module."): value for key, value in file["state_dict"].items()}
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = functional_cifar(state, images, option=option)
    assert 0.1 < expected.std() < 1e3
    with torch.no_grad():
        ours = init_backbone(name, tmp_path / "common.th", num_classes=10).eval()
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
        if option == "A":  # the shortcuts of another option, whose keys are the same, would give other numbers
            other = functional_cifar(state, images, option="none")
            assert (other - expected).abs().max() > 0.01


def test_both_names_of_the_classifier_at_once_are_refused(tmp_path):
    state = BACKBONES.build("cifar-resnet8").state_dict()
    torch.save(state | {"linear.weight": state["fc.weight"]}, tmp_path / "both.pth")
    with pytest.raises(InputError, match=r"1 unexpected \(linear.weight\)"):
        init_backbone("cifar-resnet8", tmp_path / "both.pth", num_classes=10)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_preactivation_against_the_equations(bottleneck):
    # x_{l+1} = x_l + F(relu(bn(x_l))), written with torch's modules of the net but with its own order.
    stages = tuple(("bottleneck" if bottleneck else "basic", 2, 4 * 2**i, 1 + (i > 0)) for i in range(2))
    net = filled(lambda: residual_net(stem="cifar", stages=stages, order="pre", num_classes=5))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    layers = dict(net.named_modules())
    with torch.no_grad():
        x = layers["bn1"](layers["conv1"](images)).relu()
        for key in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
            shared = x if key == "layer1.0" else layers[f"{key}.bn1"](x).relu()
            out = layers[f"{key}.conv1"](shared)
            for number in (2, 3) if bottleneck else (2,):
                out = layers[f"{key}.conv{number}"](layers[f"{key}.bn{number}"](out).relu())
            around = layers[f"{key}.downsample.0"](shared) if f"{key}.downsample.0" in layers else x
            x = around + out
        expected = net.fc(layers["bn"](x).relu().mean((2, 3)))
        torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)
    assert [key for key in layers if key.endswith("downsample.0")] == (
        ["layer1.0.downsample.0"] if bottleneck else []
    ) + ["layer2.0.downsample.0"]
