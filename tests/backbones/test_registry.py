from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resdet.backbones.blocks import BasicBlock
from resdet.backbones.registry import BACKBONES, Backbones
from resdet.backbones.resnet import ResNet
from resdet.backbones.trunk import Trunk
from resdet.errors import InputError

PAPER = {  # parameters are the well-known counts; multiply-adds in 1e9 are Table 1's
    "resnet18": (11_689_512, 1.8),
    "resnet34": (21_797_672, 3.6),
    "resnet50": (25_557_032, None),  # the stride on the 3x3 costs 6% more than the paper's net
    "resnet101": (44_549_160, None),
    "resnet152": (60_192_808, None),
    "resnet50-1x1": (25_557_032, 3.8),
    "resnet101-1x1": (44_549_160, 7.6),
    "resnet152-1x1": (60_192_808, 11.3),
}


def tiny(num_classes):
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(4, 6, 8, 10), num_classes=num_classes)


def test_names():
    assert BACKBONES.names() == list(BACKBONES) == [*PAPER, "resnet18-half"]
    assert "resnet50" in BACKBONES and "resnet51" not in BACKBONES and len(BACKBONES) == 9
    assert BACKBONES["resnet101"].paper_row == BACKBONES["resnet101-1x1"].paper_row == "101-layer"


@pytest.mark.parametrize("name", PAPER)
def test_declared_facts_are_true(name):
    entry = BACKBONES[name]
    with torch.device("meta"):
        net = BACKBONES.build(name)
        images = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        net(images)
    assert entry.parameters == PAPER[name][0] == sum(p.numel() for p in net.parameters())
    assert entry.multiply_adds == counter.get_total_flops() // 2
    if PAPER[name][1]:
        assert entry.multiply_adds / 1e9 == pytest.approx(PAPER[name][1], rel=0.02)
    trunk = Trunk(net)  # compares channels and strides with real maps
    assert (entry.channels, entry.strides) == (trunk.channels, trunk.strides)


def test_the_half_width_net():
    with torch.device("meta"):
        net = BACKBONES.build("resnet18-half")
        assert Trunk(net).channels == BACKBONES["resnet18-half"].channels
    assert BACKBONES["resnet18-half"].parameters == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "timm/resnet18"])
def test_building(name):
    with torch.device("meta"):
        net = BACKBONES.build(name, num_classes=7)
    assert net.fc.out_features == 7
    zeroed = BACKBONES.build(name, zero_last_bn=True)
    assert not zeroed.layer2[1].bn2.weight.any() and zeroed.layer2[1].bn1.weight.all()


@pytest.mark.parametrize("name", ["timm/resnext50_32x4d", "torchvision/resnext50_32x4d", "timm/resnet50d.ra2_in1k"])
def test_facts_of_library_nets(name):
    entry = BACKBONES[name]
    assert entry.channels == (256, 512, 1024, 2048) and entry.strides == (4, 8, 16, 32)
    assert entry.parameters == (25_576_264 if "resnet50d" in name else 25_028_904)
    assert entry.multiply_adds is None and entry.paper_row is None


def test_registering_by_call_and_as_decorator():
    backbones = Backbones()
    assert backbones.register("one", tiny, channels=(4, 6, 8, 10), parameters=1, multiply_adds=2) is tiny
    assert backbones.register("two", channels=(4, 6, 8, 10), strides=(2, 4, 8, 16))(tiny) is tiny
    assert backbones.names() == ["one", "two"] and len(backbones) == 2
    assert backbones["one"].channels == (4, 6, 8, 10) and backbones["two"].strides == (2, 4, 8, 16)
    assert (backbones["one"].parameters, backbones["one"].multiply_adds) == (1, 2)
    assert backbones.build("two", num_classes=5).fc.out_features == 5
    with pytest.raises(InputError, match=r"found:  'one'\n  needed: a name not taken yet"):
        backbones.register("one", tiny, channels=(4, 6, 8, 10))
    with pytest.raises(InputError, match="without a slash"):
        backbones.register("timm/one", tiny, channels=(4, 6, 8, 10))


@pytest.mark.parametrize("name", ["resnet51", "resnet50-caffe", "ResNet50", "timm", "hub/resnet50"])
def test_unknown_names_get_suggestions(name):
    with pytest.raises(InputError, match=r"resnet50(.|\n)*or timm/<model>, torchvision/<model>") as caught:
        BACKBONES.build(name)
    assert f"found:  {name!r}\n" in str(caught.value)


def test_unknown_library_models():
    with pytest.raises(InputError, match=r"no such model in timm(.|\n)*resnet50"):
        BACKBONES["timm/resnet51"]
    with pytest.raises(InputError, match=r"no such model in torchvision(.|\n)*'resnet50'"):
        BACKBONES["torchvision/resnet51"]


@pytest.mark.parametrize("name", ["timm/vgg11", "torchvision/alexnet", "timm/resnetv2_18"])
def test_other_shapes_are_refused(name):
    with pytest.raises(InputError, match=r"resnext50_32x4d, (.|\n)*work(.|\n)*without conv1, (.|\n)*layer4") as caught:
        BACKBONES.build(name)
    assert "needed: a residual net with conv1" in str(caught.value)
