from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, Bottleneck
from resdet.backbones.frozen import FrozenBatchNorm
from resdet.backbones.resnet import ResNet
from resdet.backbones.trunk import Trunk, conv5_head, freeze_stages, stage_channels, take_stride
from resdet.errors import InputError


def tiny():
    torch.manual_seed(0)
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(4, 6, 8, 10), num_classes=3)


def test_maps_are_those_of_the_net():
    net = tiny().eval()
    trunk = Trunk(net)
    maps = trunk(images := torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 4, 16, 24), (2, 6, 8, 12), (2, 8, 4, 6), (2, 10, 2, 3)]
    assert trunk.channels == (4, 6, 8, 10) and trunk.strides == (4, 8, 16, 32)
    torch.testing.assert_close(net.fc(maps[-1].mean((2, 3))), net(images))


def test_c4_and_its_head_make_up_the_whole():
    net = tiny().eval()
    trunk = Trunk(net, last=4)
    images = torch.randn(1, 3, 64, 64)
    assert trunk.channels == (4, 6, 8) and trunk.strides == (4, 8, 16)
    assert not any(key.startswith(("layer4", "fc")) for key in trunk.state_dict())
    torch.testing.assert_close(conv5_head(net)(trunk(images)[-1]), Trunk(net)(images)[-1])
    assert stage_channels(net)[-1] == 10


def test_keys_are_those_of_the_net():
    net = tiny()
    assert {*Trunk(net).state_dict(), "fc.weight", "fc.bias"} == set(net.state_dict())


def test_building_leaves_statistics_alone():
    net = tiny().train()
    Trunk(net)
    assert net.bn1.num_batches_tracked == 0 and net.bn1.running_mean.abs().sum() == 0


@pytest.mark.parametrize("model", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_family(model):
    from torchvision.models import get_model

    with torch.device("meta"):
        trunk = Trunk(get_model(model))
    assert trunk.channels == ((64, 128, 256, 512) if model == "resnet18" else (256, 512, 1024, 2048))


@pytest.mark.parametrize("model", ["resnet26d", "seresnext26t_32x4d", "resnetaa50", "resnetrs50", "skresnet18"])
def test_timm_family_with_deep_stems(model):
    import timm

    with torch.device("meta"):
        trunk = Trunk(timm.create_model(model))
    assert trunk.strides == (4, 8, 16, 32)
    assert trunk.channels == ((64, 128, 256, 512) if model == "skresnet18" else (256, 512, 1024, 2048))


def test_timm_maps_equal_its_own():
    import timm

    net = timm.create_model("resnet26d", pretrained=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own = net.forward_intermediates(images, indices=4, intermediates_only=True)
        torch.testing.assert_close(Trunk(net)(images), list(own))


@pytest.mark.parametrize("count", range(6))
def test_freezing_stages(count):
    trunk = freeze_stages(Trunk(tiny()), count)
    groups = [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    learning = {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad}
    assert learning == set().union(*groups[count:])
    assert isinstance(trunk.bn1, FrozenBatchNorm) == (count > 0)
    maps = trunk.train()(torch.randn(2, 3, 64, 64))
    if count < 5:
        maps[-1].sum().backward()
    frozen = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(frozen) == [12, 11, 9, 6, 3, 0][count]  # 1 in the stem, 2 in conv2_x, 3 (a projection) in the others


def test_error_texts():
    with pytest.raises(InputError, match=r"Trunk\(last=...\)\n  found:  6\n  needed: 2, 3, 4 or 5"):
        Trunk(tiny(), last=6)
    with pytest.raises(InputError, match=r"found:  3(.|\n)*0..2 for this trunk"):
        freeze_stages(Trunk(tiny(), last=2), 3)
    with pytest.raises(
        InputError, match=r"Linear without conv1, bn1, (.|\n)*relu or act1(.|\n)*needed: a residual net"
    ):
        conv5_head(nn.Linear(1, 1))
    wrong = tiny()
    wrong.channels = (4, 6, 8, 11)
    with pytest.raises(InputError, match=r"\(10, 2, 2\)\](.|\n)*\(11, 2, 2\)\]"):
        Trunk(wrong)


def test_an_empty_batch_passes():
    assert [m.shape[0] for m in Trunk(tiny().eval())(torch.zeros(0, 3, 64, 64))] == [0, 0, 0, 0]


def test_a_stride_on_1x1_is_taken_off():
    torch.manual_seed(0)
    stage = nn.Sequential(Bottleneck(8, 4, stride=2, stride_on="1x1"), Bottleneck(16, 4)).eval()
    x = torch.randn(3, 8, 14, 14)
    before = stage(x)
    assert before.shape[-1] == 7
    assert take_stride(stage) == 2
    torch.testing.assert_close(stage(x[:, :, ::2, ::2]), before)
    assert take_stride(stage) == 1  # it has none left


@pytest.mark.parametrize(
    "block",
    [Bottleneck(8, 4, stride=2), BasicBlock(8, 8, stride=2), Bottleneck(8, 4, stride=2, shortcut="A"), nn.ReLU()],
)
def test_other_strides_stay(block):
    before = [m.stride for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert take_stride(nn.Sequential(block)) == 1
    assert [m.stride for m in block.modules() if isinstance(m, nn.Conv2d)] == before
