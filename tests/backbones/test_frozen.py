from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.frozen import FrozenBatchNorm, freeze_batchnorm
from resdet.errors import InputError


def random_bn(channels=5, kind=nn.BatchNorm2d):
    torch.manual_seed(0)
    bn = kind(channels, eps=1e-3).eval()
    for tensor in (bn.weight.data, bn.bias.data, bn.running_mean):
        tensor.normal_()
    bn.running_var.uniform_(0.5, 2.0)
    return bn


@pytest.mark.parametrize("requires_grad", [False, True])
def test_by_hand(requires_grad):
    # (7 - 3) / sqrt(4 + 0) * 5 + 1 = 11
    bn = FrozenBatchNorm(1, eps=0.0)
    bn.load_state_dict({k: torch.tensor([v]) for k, v in zip(bn.state_dict(), (5.0, 1.0, 3.0, 4.0), strict=True)})
    x = torch.full((1, 1, 1, 1), 7.0, requires_grad=requires_grad)
    torch.testing.assert_close(bn(x), torch.full((1, 1, 1, 1), 11.0), check_stride=False)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_equals_batchnorm_in_eval_mode_whatever_its_own_mode(requires_grad):
    bn = random_bn()
    x = torch.randn(2, 5, 3, 4, requires_grad=requires_grad)
    frozen = freeze_batchnorm(bn).train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    torch.testing.assert_close(frozen(x), bn(x))
    torch.testing.assert_close(dict(frozen.state_dict()), before)


def test_gradient_is_the_scale():
    bn = random_bn()
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(freeze_batchnorm(bn)(x).sum(), x)
    scale = bn.weight / (bn.running_var + 1e-3).sqrt()
    torch.testing.assert_close(grad, scale.detach().view(-1, 1, 1).expand_as(x))


def test_nothing_of_the_map_is_kept_for_the_backward_pass():
    x, kept = torch.randn(1, 5, 32, 32, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        freeze_batchnorm(random_bn())(x)
    assert sum(kept) <= 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_follows_the_input_dtype(dtype, requires_grad):
    x = torch.randn(2, 5, 3, 4).to(dtype).requires_grad_(requires_grad)
    out = freeze_batchnorm(random_bn())(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), random_bn()(x.float()), rtol=0.02, atol=0.05)


def test_follows_autocast():
    net = freeze_batchnorm(nn.Sequential(nn.Conv2d(3, 5, 1), random_bn()))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(1, 3, 2, 2)).dtype == torch.bfloat16


def test_nested_layers_are_replaced_and_hold_no_parameters():
    net = freeze_batchnorm(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(random_bn())))
    assert isinstance(net[1][0], FrozenBatchNorm)
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    torch.testing.assert_close(net[1][0].running_var, random_bn().running_var)


def test_state_dicts_go_both_ways():
    bn = random_bn()
    frozen = FrozenBatchNorm(5)
    frozen.load_state_dict(bn.state_dict())  # strict, with num_batches_tracked
    assert set(bn.state_dict()) - set(frozen.state_dict()) == {"num_batches_tracked"}
    torch.testing.assert_close(frozen.bias, bn.bias.data)


def test_sync_and_plain_scaleless_batchnorm():
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(freeze_batchnorm(random_bn(kind=nn.SyncBatchNorm))(x), random_bn()(x))
    plain = nn.BatchNorm2d(5, affine=False).eval()
    torch.testing.assert_close(freeze_batchnorm(plain)(x), plain(x))


def test_refuses_what_is_more_or_less_than_batchnorm():
    class Scaled(nn.BatchNorm2d):
        """BN that does more."""

    with pytest.raises(InputError, match=r"found:  (.*)Scaled\((.|\n)*needed: nn.BatchNorm2d"):
        freeze_batchnorm(nn.Sequential(Scaled(4)))
    with pytest.raises(InputError, match="track_running_stats=False"):
        freeze_batchnorm(nn.BatchNorm2d(4, track_running_stats=False))


def test_batchnorm_with_activation_of_timm():
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
    for _ in range(3):
        net(torch.randn(8, 3, 5, 5) + 2)
    image = torch.randn(2, 3, 5, 5)
    before = net.eval()(image)
    frozen = freeze_batchnorm(net).train()
    torch.testing.assert_close(frozen(image), before)
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight", "0.bias"]  # nothing of BN learns


def test_empty_input_and_a_module_without_batchnorm():
    assert FrozenBatchNorm(5)(torch.zeros(0, 5, 3, 3)).shape == (0, 5, 3, 3)
    relu = nn.ReLU()
    assert freeze_batchnorm(relu) is relu
