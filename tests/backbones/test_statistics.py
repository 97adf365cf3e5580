from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import nn

from resdet.backbones.statistics import compute_batchnorm_statistics
from resdet.engine import distributed
from resdet.errors import InputError


def column(*values: int) -> torch.Tensor:
    """One image per value, one channel, two equal pixels."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, 1, 1, 2)


def random_batches(sizes: tuple[int, ...], channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, 5, 4, generator=generator) * (i + 1) + 7 * i for i, n in enumerate(sizes)]


def test_one_layer_by_hand():
    # Values 1, 3, 5 and 11: mean 20 / 4 = 5, variance (16 + 4 + 0 + 36) / 4 = 14. The average of the batches' own
    # figures would be mean (3 + 11) / 2 = 7.
    layer = nn.BatchNorm2d(1)
    images = compute_batchnorm_statistics(layer, [column(1, 3, 5), column(11)], device="cpu")
    assert images == 4
    torch.testing.assert_close(layer.running_mean, torch.tensor([5.0]))
    torch.testing.assert_close(layer.running_var, torch.tensor([14.0]))


def test_unequal_batches_equal_their_concatenation():
    layer, batches = nn.BatchNorm2d(3), random_batches((2, 7, 1, 4))
    compute_batchnorm_statistics(layer, iter(batches), device="cpu")
    variance, mean = torch.var_mean(torch.cat(batches).double(), dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(layer.running_mean, mean.float())
    torch.testing.assert_close(layer.running_var, variance.float())


def test_a_large_mean_does_not_cancel_the_variance():
    # Mean 4096, variance 1: mean of squares minus square of mean would lose it in float32.
    layer, batches = nn.BatchNorm2d(1), [column(4095, 4097), column(4095, 4097, 4095, 4097)]
    compute_batchnorm_statistics(layer, batches, device="cpu")
    torch.testing.assert_close(layer.running_var, torch.tensor([1.0]))


class Net(nn.Module):
    """Two BN layers in a chain, a frozen one, a dropout, and a layer that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(3, momentum=0.3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn2 = nn.BatchNorm2d(3, momentum=None)
        self.frozen = nn.BatchNorm2d(3, track_running_stats=False)
        self.unused = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        return self.frozen(self.bn2(self.conv(self.dropout(self.bn1(x)).relu())))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for layer in (net.bn1, net.bn2, net.unused):
        nn.init.uniform_(layer.running_mean)
    net.train()
    net.bn2.eval()
    return net


def test_one_pass_normalises_by_the_batch(net):
    batches = random_batches((4, 9))
    compute_batchnorm_statistics(net, batches, device="cpu")
    with torch.no_grad():
        # layer 2 saw each batch normalised by its own statistics, without dropout
        inputs = [net.conv(nn.functional.batch_norm(x, None, None, training=True).relu()) for x in batches]
    variance, mean = torch.var_mean(torch.cat(inputs), dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(net.bn2.running_mean, mean)
    torch.testing.assert_close(net.bn2.running_var, variance)


def test_layer_by_layer_is_exact_for_the_frozen_net(net):
    batches = random_batches((4, 9))
    assert compute_batchnorm_statistics(net, batches, device="cpu", layer_by_layer=True) == 13
    net.eval()
    with torch.no_grad():
        inputs = net.conv(net.bn1(torch.cat(batches)).relu())
    variance, mean = torch.var_mean(inputs, dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(net.bn2.running_mean, mean)
    torch.testing.assert_close(net.bn2.running_var, variance)


def test_everything_else_is_as_before(net):
    modes = {name: module.training for name, module in net.named_modules()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compute_batchnorm_statistics(net, random_batches((2, 3)), device="cpu")
    assert modes == {name: module.training for name, module in net.named_modules()}
    assert (net.bn1.momentum, net.bn2.momentum) == (0.3, None)
    assert not any(module._forward_hooks for module in net.modules())
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {f"bn{i}.running_{what}" for i in (1, 2) for what in ("mean", "var")}


def test_old_statistics_do_not_matter(net):
    nn.init.constant_(net.bn1.running_mean, float("nan"))
    compute_batchnorm_statistics(net, random_batches((2, 3)), device="cpu")
    assert net.bn1.running_mean.isfinite().all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "no batch of images"), ([torch.ones(2, 3, 2, 2), torch.full((1, 3, 2, 2), float("nan"))], "'bn1'")],
)
def test_errors_leave_the_net_alone(net, batches, message):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError, match=message):
        compute_batchnorm_statistics(net, batches, device="cpu")
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert net.training and not net.bn2.training and net.bn1.momentum == 0.3


def test_an_iterator_cannot_be_passed_twice(net):
    with pytest.raises(InputError, match="layer by layer: each pass"):
        compute_batchnorm_statistics(net, iter(random_batches((2,))), device="cpu", layer_by_layer=True)


def test_a_net_without_bn():
    assert compute_batchnorm_statistics(nn.Conv2d(3, 3, 1), random_batches((2,)), device="cpu") == 0


def test_a_compiled_net_is_measured_as_it_is_written():
    # CUDA graphs give every batch the same memory, and the moments are read after the next has begun.
    def compiler(graph, inputs):
        raise AssertionError("compiled")

    net, plain = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    plain.load_state_dict(net.state_dict())
    net.compile(backend=compiler)
    for each in (net, plain):
        assert compute_batchnorm_statistics(each, random_batches((2, 3)), device="cpu") == 5
    assert torch.equal(net[1].running_var, plain[1].running_var)


def _share(rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    batches = random_batches((2, 7, 1))
    variance, mean = torch.var_mean(torch.cat(batches), dim=(0, 2, 3), unbiased=False)
    for cut in (1, 3):  # the second time, the second process has nothing
        layer = nn.BatchNorm2d(3)
        share = batches[:cut] if rank == 0 else batches[cut:]
        assert compute_batchnorm_statistics(layer, share, device="cpu") == 10
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, variance)
    distributed.wait()
    distributed.leave(0)


def test_two_processes(rendezvous):
    torch.multiprocessing.spawn(_share, args=(rendezvous,), nprocs=2)
