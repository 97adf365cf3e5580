from __future__ import annotations

import pytest
import torch

from resdet.backbones.blocks import BasicBlock
from resdet.backbones.counting import count
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
    "plain18": (11_689_512 - 173_824, 1.8),  # projections 64 * 128 + 128 * 256 + 256 * 512 = 172032, BN 2 * 896
    "plain34": (21_797_672 - 173_824, 3.6),
    "resnet34-A": (21_797_672 - 173_824, 3.6),
}
# 1202 layers take seconds to build even without weights: test_resnet_cifar.py derives these two from the -A form
SLOW = ("cifar-resnet1202-B", "cifar-resnet1202-C")


def tiny(num_classes):
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(4, 6, 8, 10), num_classes=num_classes)


def test_names():
    names = BACKBONES.names()
    assert names == list(BACKBONES) and len(BACKBONES) == len(names) and PAPER.keys() <= set(names)
    cifar = {f"cifar-resnet{depth}{kind}" for depth in (20, 32, 44, 56, 110, 1202) for kind in ("", "-B", "-C")}
    cifar |= {f"cifar-plain{depth}" for depth in (20, 32, 44, 56)}
    imagenet = {f"resnet{depth}{kind}" for depth in (18, 34, 50, 101, 152) for kind in ("", "-A", "-C")}
    assert cifar | imagenet | {"preresnet200", "resnet18-half", "cifar-preresnet1001"} <= set(names)
    assert "resnet50" in BACKBONES and "resnet51" not in BACKBONES
    assert BACKBONES["resnet101"].paper_row == BACKBONES["resnet101-1x1"].paper_row == "101-layer"
    assert BACKBONES["preresnet200"].paper_row is None
    assert BACKBONES["resnet50"].weights == ("torchvision/resnet50", "timm/resnet50")
    assert BACKBONES["resnet50-1x1"].weights == BACKBONES["resnet50-A"].weights == BACKBONES["plain18"].weights == ()


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in SLOW])
def test_declared_facts_are_true(name):
    entry = BACKBONES[name]
    with torch.device("meta"):
        net = BACKBONES.build(name)
    assert (entry.parameters, entry.multiply_adds) == count(net, (entry.image_side, entry.image_side))
    if name in PAPER:
        parameters, billions = PAPER[name]
        assert entry.parameters == parameters
        assert billions is None or entry.multiply_adds / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", [name for name in BACKBONES if "res" in name and BACKBONES[name].image_side == 224])
def test_declared_maps_are_true(name):
    entry = BACKBONES[name]
    with torch.device("meta"):
        net = BACKBONES.build(name)
    if name.startswith("pre"):
        with pytest.raises(InputError, match="whose sums are not activated until"):
            Trunk(net)
        assert (entry.channels, entry.strides) == (net.channels, net.strides)
        return
    trunk = Trunk(net)  # compares channels and strides with real maps
    assert (entry.channels, entry.strides) == (trunk.channels, trunk.strides)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("resnext")])
def test_facts_of_grouped_nets_are_the_libraries(name):
    entry = BACKBONES[name]
    assert entry.weights and entry.paper_row is None
    for library in entry.weights:
        with torch.device("meta"):
            theirs = BACKBONES.build(library)
        assert (entry.parameters, entry.multiply_adds) == count(theirs, (224, 224))
        assert (entry.channels, entry.strides) == (BACKBONES[library].channels, BACKBONES[library].strides)


def test_classes_follow_the_data_set():
    with torch.device("meta"):
        sizes = [BACKBONES.build(name).fc.out_features for name in ("cifar-plain20", "resnet18")]
    assert sizes == [10, 1000]
    assert (BACKBONES["cifar-plain20"].image_side, BACKBONES["cifar-plain20"].classes) == (32, 10)
    assert BACKBONES["cifar-resnet26"].parameters is None  # any n, but nobody declared this one


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


@pytest.mark.parametrize("name", ["resnet51", "resnet50-caffe", "ResNet50", "hub/resnet50"])
def test_unknown_names_get_suggestions(name):
    with pytest.raises(InputError, match=r"resnet50(.|\n)*or timm/<model>, torchvision/<model>") as caught:
        BACKBONES.build(name)
    assert f"found:  {name!r}\n" in str(caught.value)


def test_names_like_none_get_a_list():
    with pytest.raises(InputError, match=r"needed: one of: cifar-plain110, (.*), and \d+ more; or timm/<model>, torch"):
        BACKBONES["timm"]


def test_unknown_library_models():
    with pytest.raises(InputError, match=r"no such model in timm(.|\n)*resnet50"):
        BACKBONES["timm/resnet51"]
    with pytest.raises(InputError, match=r"no such model in torchvision(.|\n)*'resnet50'"):
        BACKBONES["torchvision/resnet51"]


@pytest.mark.parametrize("name", ["torchvision/alexnet", "torchvision/convnext_tiny"])
def test_other_shapes_are_refused(name):
    with pytest.raises(InputError, match=r"resnext50_32x4d, (.|\n)*work(.|\n)*without conv1, (.|\n)*layer4") as caught:
        BACKBONES.build(name)
    assert "needed: a residual net with conv1" in str(caught.value)
