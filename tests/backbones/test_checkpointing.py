from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resdet.backbones import checkpointing
from resdet.backbones.checkpointing import CheckpointedStage, checkpoint_blocks
from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet_cifar import cifar_preresnet, cifar_resnet
from resdet.backbones.stochastic_depth import stochastic_depth
from resdet.errors import InputError


def step(net, images, *, seed=1):
    torch.manual_seed(seed)
    logits = net(images)
    logits.square().mean().backward()
    return logits


NETS = {
    "post": lambda: cifar_resnet(14),
    "pre": lambda: cifar_preresnet(14),
    "dropout": lambda: cifar_resnet(14, shortcut="dropout"),  # its masks must be drawn again alike
    "depth": lambda: stochastic_depth(cifar_resnet(14), 0.5),
    "frozen": lambda: freeze_batchnorm(cifar_resnet(14)),
    "torchvision": lambda: BACKBONES.build("torchvision/resnet18"),
}


@pytest.mark.parametrize("kind", NETS)
def test_gradients_and_statistics_are_exactly_the_same(kind):
    torch.manual_seed(0)
    net = NETS[kind]()
    images = torch.randn(4, 3, 32, 32)
    other = checkpoint_blocks(copy.deepcopy(net))
    assert list(other.state_dict()) == list(net.state_dict())
    for seed in (1, 2):  # the second step would see what the first left behind
        exact = {"rtol": 0, "atol": 0}
        torch.testing.assert_close(step(other, images, seed=seed), step(net, images, seed=seed), **exact)
        theirs = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        torch.testing.assert_close(
            {n: p.grad for n, p in other.named_parameters() if p.grad is not None}, theirs, **exact
        )
        torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), **exact)
    if kind != "frozen":
        assert other.bn1.num_batches_tracked == 2


def test_only_inputs_of_blocks_are_kept():
    # The image, the stem's convolution, and the blocks' inputs: 4 maps of 16 x 32 x 32, 3 of 32 x 16 x 16, 2 of
    # 64 x 8 x 8. Without checkpoints each block also keeps its two convolutions' outputs and the map between them.
    net, images, kept = cifar_resnet(20), torch.randn(1, 3, 32, 32), []

    def bytes_kept():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            logits = net(images)
        assert logits.requires_grad  # the graph lives while its tensors are counted
        maps = {t.untyped_storage().data_ptr(): t.nbytes for t in kept if t.dim() == 4 and not t.is_leaf}
        return sum(maps.values())

    whole = bytes_kept()
    checkpoint_blocks(net)
    checkpointed = bytes_kept()
    assert checkpointed == 4 * (16 * 32**2 + 4 * 16 * 32**2 + 3 * 32 * 16**2 + 2 * 64 * 8**2)
    assert checkpointed < 0.35 * whole


def test_nothing_is_computed_twice_without_gradients():
    net = checkpoint_blocks(cifar_resnet(8))
    calls = []
    net.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.randn(2, 3, 32, 32))
    assert len(calls) == 1 and net.layer1[0].bn1.num_batches_tracked == 1
    step(net, torch.randn(2, 3, 32, 32))
    assert len(calls) == 3 and net.layer1[0].bn1.num_batches_tracked == 2


def test_statistics_stay_as_they_were_after_an_error():
    net = checkpoint_blocks(cifar_resnet(8))
    logits = net(torch.randn(2, 3, 32, 32))

    def fail(*_):
        raise RuntimeError("boom")

    statistics = {k: v.clone() for k, v in net.state_dict().items()}
    net.layer2[0].bn2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="boom"):
        logits.sum().backward()
    torch.testing.assert_close(dict(net.state_dict()), statistics, rtol=0, atol=0)


def test_through_the_registry_and_refused():
    assert isinstance(BACKBONES.build("cifar-resnet8", checkpoint=True).layer3, CheckpointedStage)
    with pytest.raises(InputError, match="Linear without layer1"):
        checkpoint_blocks(nn.Linear(1, 1))


def test_only_blocks_with_learning_bn_need_a_context(monkeypatch):
    given = []
    monkeypatch.setattr(checkpointing, "checkpoint", lambda block, x, **how: given.append(set(how)) or block(x))
    for freeze in (False, True):
        net = BACKBONES.build("resnet18-half", num_classes=2)
        net = checkpoint_blocks(freeze_batchnorm(net) if freeze else net)
        net(torch.randn(2, 3, 32, 32))
    assert given == [{"use_reentrant", "context_fn"}] * 8 + [{"use_reentrant"}] * 8
