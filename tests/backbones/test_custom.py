from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.custom import define_net, residual_net
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import preresnet200, resnet18, resnet50
from resdet.backbones.resnet_cifar import cifar_resnet
from resdet.backbones.trunk import Trunk, conv5_head
from resdet.errors import InputError

SMALL = (("basic", 1, 4, 1), ("basic", 2, 6, 2), ("basic", 1, 8, 2), ("basic", 1, 10, 2))


@pytest.fixture
def names():
    before = set(BACKBONES.names())
    yield
    for name in set(BACKBONES.names()) - before:
        del BACKBONES._entries[name]


@pytest.mark.parametrize(
    ("build", "description"),
    [
        (resnet18, {"stem": "imagenet", "stages": [("basic", 2, 64 * 2**i, 1 + (i > 0)) for i in range(4)]}),
        (
            resnet50,
            {
                "stem": "imagenet",
                "stages": [("bottleneck", n, 64 * 2**i, 1 + (i > 0)) for i, n in enumerate((3, 4, 6, 3))],
            },
        ),
        (
            lambda k: cifar_resnet(20, k),
            {"stem": "cifar", "stages": [("basic", 3, 16 * 2**i, 1 + (i > 0)) for i in range(3)], "shortcut": "A"},
        ),
        (
            preresnet200,
            {
                "stem": "imagenet",
                "stages": [("bottleneck", n, 64 * 2**i, 1 + (i > 0)) for i, n in enumerate((3, 24, 36, 3))],
                "order": "pre",
            },
        ),
    ],
)
def test_descriptions_of_known_nets(build, description):
    with torch.device("meta"):
        known, described = build(7), residual_net(**description, num_classes=7)
    shapes = [[(key, value.shape) for key, value in net.state_dict().items()] for net in (known, described)]
    assert shapes[0] == shapes[1]
    assert [type(m) for m in known.modules()][1:] == [type(m) for m in described.modules()][1:]


def test_registered_and_used_by_a_detector(names):
    rows = [list(row) for row in SMALL]  # a config may write lists
    assert define_net(name="mine", stem="deep", stages=rows, shortcut="C", dropout=0.2) == "mine"
    net = BACKBONES.build("mine", num_classes=3)
    assert net.dropout.p == 0.2 and net.fc.out_features == 3
    entry = BACKBONES["mine"]
    trunk = Trunk(net)
    assert (entry.channels, entry.strides) == (trunk.channels, trunk.strides) == ((4, 6, 8, 10), (4, 8, 16, 32))
    assert (entry.image_side, entry.classes) == (224, 1000)
    assert entry.parameters == sum(p.numel() for p in BACKBONES.build("mine").parameters())
    assert conv5_head(net) is net.layer4


def test_strides_are_computed(names):
    stages = (("basic", 1, 4, 2), ("basic", 1, 4, 1), ("bottleneck", 1, 4, 2), ("basic", 1, 4, 1))
    define_net(name="dense", stem="imagenet", stages=stages)
    assert BACKBONES["dense"].strides == (8, 8, 16, 16) and BACKBONES["dense"].channels == (4, 4, 16, 4)
    assert Trunk(BACKBONES.build("dense")).strides == (8, 8, 16, 16)


def test_saying_it_twice(names):
    define_net(name="mine", stem="cifar", stages=SMALL[:2])
    assert define_net(name="mine", stem="cifar", stages=[list(row) for row in SMALL[:2]]) == "mine"
    assert BACKBONES["mine"].image_side == 32 and BACKBONES.build("mine").fc.out_features == 10
    with pytest.raises(InputError) as caught:
        define_net(name="mine", stem="cifar", stages=SMALL[:1], shortcut="C")
    assert str(caught.value) == (
        "define_net(name='mine')\n"
        f"  found:  two nets: stages={SMALL[:2]!r} and {SMALL[:1]!r}, shortcut='B' and 'C'\n"
        "  needed: a name not taken yet: files whose nets differ but have one name cannot be used together"
    )


@pytest.mark.parametrize("name", ["resnet50", "cifar-resnet20", "cifar-resnet26", "cifar-preresnet26-C"])
def test_names_that_the_registry_knows(names, name):
    with pytest.raises(
        InputError, match=r"found:  a net of the registry has this name\n  needed: a name not taken yet"
    ):
        define_net(name=name, stem="cifar", stages=SMALL)
    assert name in BACKBONES.names() or BACKBONES[name].builder.depth == 26


def test_names_that_cannot_be(names):
    with pytest.raises(InputError, match="cifar-resnet21"):  # of no such depth, but read as such
        define_net(name="cifar-resnet21", stem="cifar", stages=SMALL)
    with pytest.raises(InputError, match="a name without a slash"):
        define_net(name="timm/resnet50", stem="cifar", stages=SMALL)


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none", "highway"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_it_learns(order, shortcut):
    net = residual_net(stem="cifar", stages=SMALL[:2], shortcut=shortcut, order=order, num_classes=3)
    assert isinstance(net.layer1, nn.Sequential)
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stages": ()}, r"stages=...\)\n  found:  none\n  needed: at least one"),
        ({"stages": (("basic", 1, 4),)}, r"stage 1 of a net\n  found:  \('basic', 1, 4\)\n  needed: \(block, depth"),
        ({"stages": (*SMALL, 5)}, r"stage 5 of a net\n  found:  5"),
        (
            {"stages": (("basik", 1, 4, 1),)},
            r"stage 1 of a net, block\n  found:  'basik'\n  needed: did you mean 'basic'",
        ),
        ({"stages": (("basic", 1.5, 4, 1),)}, r"found:  \('basic', 1.5, 4, 1\)(.|\n)*whole numbers from 1 on"),
        ({"stages": (("basic", 0, 4, 1),)}, "whole numbers from 1 on"),
        ({"shortcut": "bb"}, r"shortcut\n  found:  'bb'"),
        ({"order": "before"}, r"order=...\)\n  found:  'before'\n  needed: one of: bn-after-addition, post, pre"),
        ({"stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"dropout": 1.0}, r"dropout=...\)\n  found:  1.0\n  needed: a share in \[0, 1\)"),
    ],
)
def test_error_texts(changes, text):
    with pytest.raises(InputError, match=text):
        residual_net(**{"stem": "cifar", "stages": SMALL, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stem": "cifar"}, "ResidualNet with the CIFAR stem"),
        ({"order": "pre"}, "with pre-activation blocks, whose sums are not activated until"),
        ({"stages": SMALL[:3]}, "with 3 stages"),
        ({"stages": (*SMALL, ("basic", 1, 4, 1))}, "with 5 stages"),
    ],
)
def test_nets_that_are_no_trunks(changes, text):
    net = residual_net(**{"stem": "imagenet", "stages": SMALL, **changes})
    with pytest.raises(InputError, match=text):
        Trunk(net)
