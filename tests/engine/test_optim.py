from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from resdet.engine.optim import autocast, build_optimizer, build_schedulers, in_steps
from resdet.engine.settings import Optimizer, Schedule
from resdet.errors import InputError


def one_weight(value=(1.0, 1.0)):
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor(value))
    return net


def update(wrapper, net, gradient):
    wrapper.update_params((net.w * torch.tensor(gradient)).sum())


def rates(schedule, steps, *, lr=1.0, steps_per_epoch=10):
    net = one_weight()
    wrapper = build_optimizer(net, Optimizer(momentum=0), amp="off", lr=lr)
    schedulers = build_schedulers(wrapper, schedule, steps_per_epoch)
    seen = []
    for _ in range(steps):
        seen.append(wrapper.get_lr()["lr"][0])
        update(wrapper, net, (0.0, 0.0))
        for scheduler in schedulers:
            scheduler.step()
    return seen


def test_sgd_by_hand():
    # w = 1; gradient 0.5 + 0.1 * w of the decay = 0.6, velocity 0.6, w = 1 - 0.1 * 0.6 = 0.94;
    # then 0.5 + 0.094 = 0.594, velocity 0.9 * 0.6 + 0.594 = 1.134, w = 0.94 - 0.1134 = 0.8266
    net = one_weight()
    wrapper = build_optimizer(net, Optimizer(momentum=0.9, weight_decay=0.1), amp="off", lr=0.1)
    update(wrapper, net, (0.5, 0.5))
    torch.testing.assert_close(net.w.data, torch.tensor([0.94, 0.94]))
    update(wrapper, net, (0.5, 0.5))
    torch.testing.assert_close(net.w.data, torch.tensor([0.8266, 0.8266]))


def test_clipping_by_hand():
    # |(3, 4)| = 5 is cut to 1: (0.6, 0.8); with lr 1 w = (0.4, 0.2). torch divides by the norm plus 1e-6.
    net = one_weight()
    wrapper = build_optimizer(net, Optimizer(momentum=0, weight_decay=0, clip_norm=1.0), amp="off", lr=1.0)
    update(wrapper, net, (3.0, 4.0))
    torch.testing.assert_close(net.w.data, torch.tensor([0.4, 0.2]), atol=1e-5, rtol=0)
    net = one_weight()
    wrapper = build_optimizer(net, Optimizer(momentum=0, weight_decay=0, clip_norm=10.0), amp="off", lr=1.0)
    update(wrapper, net, (3.0, 4.0))
    torch.testing.assert_close(net.w.data, torch.tensor([-2.0, -3.0]))


def test_accumulation_by_hand():
    # Mean of (1, 0) and (3, 2) is (2, 1): w = 1 - (2, 1) = (-1, 0), and nothing before the second.
    net = one_weight()
    wrapper = build_optimizer(net, Optimizer(momentum=0, weight_decay=0, accumulate=2), amp="off", lr=1.0)
    wrapper.initialize_count_status(net, 0, 4)
    update(wrapper, net, (1.0, 0.0))
    torch.testing.assert_close(net.w.data, torch.tensor([1.0, 1.0]))
    update(wrapper, net, (3.0, 2.0))
    torch.testing.assert_close(net.w.data, torch.tensor([-1.0, 0.0]))


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights():
    net = nn.Linear(4, 2)
    wrapper = build_optimizer(net, Optimizer(), amp="bf16", lr=0.1)
    with wrapper.optim_context(net):
        output = net(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    assert net(torch.ones(1, 4)).dtype == torch.float32
    wrapper.update_params(output.float().sum())
    assert net.weight.dtype == torch.float32
    with autocast("off"):
        assert net(torch.ones(1, 4)).dtype == torch.float32


def test_frozen_parameters_are_left_out():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    wrapper = build_optimizer(net, Optimizer(), amp="off", lr=0.1)
    assert [len(group["params"]) for group in wrapper.param_groups] == [1]


def test_errors():
    net = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="without trainable parameters"):
        build_optimizer(net, Optimizer(), amp="off", lr=0.1)
    with pytest.raises(InputError, match="momentum above 0"):
        build_optimizer(one_weight(), Optimizer(nesterov=True, momentum=0), amp="off", lr=0.1)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="without a GPU"):
            build_optimizer(one_weight(), Optimizer(), amp="fp16", lr=0.1)


def test_lengths_in_steps():
    assert in_steps(2, Schedule(unit="epoch"), 10) == 20
    assert in_steps(0.25, Schedule(unit="epoch"), 10) == 2
    assert in_steps(7, Schedule(unit="step"), 10) == 7
    assert in_steps(0.001, Schedule(unit="epoch"), 10) == 1


def test_small_sets_are_gone_through_more_often():
    schedule = Schedule(length=20, least_steps=600, milestones=(15,), validate_every=2)
    assert [in_steps(each, schedule, 6) for each in (20, 15, 2)] == [600, 450, 60]  # 120, 90 and 12 by length
    assert [in_steps(each, schedule, 40) for each in (20, 15, 2)] == [800, 600, 80]
    assert in_steps(50, Schedule(length=50, unit="step", least_steps=80), 10) == 80
    seen = rates(schedule, 600, steps_per_epoch=6)
    assert seen[:450] == [1.0] * 450 and seen[450:] == pytest.approx([0.1] * 150)


def test_warmup_ends_and_milestones_divide():
    # Warm-up of 3 steps from a tenth: 0.1, 0.55, 1; then 1 until step 5, 0.1 until 7, 0.01.
    schedule = Schedule(unit="step", length=9, milestones=(5, 7), warmup_steps=3, warmup_factor=0.1)
    assert rates(schedule, 9) == pytest.approx([0.1, 0.55, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_in_epochs():
    seen = rates(Schedule(length=3, milestones=(1, 2)), 30, lr=2.0)
    assert seen == pytest.approx([2.0] * 10 + [0.2] * 10 + [0.02] * 10)


def test_cosine():
    seen = rates(Schedule(unit="step", length=12, policy="cosine", warmup_steps=2, warmup_factor=0.5), 12)
    expected = [0.5, 1.0] + [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert seen == pytest.approx(expected)


def test_no_schedule_and_a_warmup_longer_than_the_run():
    assert rates(Schedule(unit="step", length=4), 4) == [1.0] * 4
    seen = rates(Schedule(unit="step", length=3, policy="cosine", warmup_steps=50, warmup_factor=0.1), 3)
    assert seen == pytest.approx([0.1, 0.55, 1.0])


def test_a_warmup_of_one_step_is_none():
    assert rates(Schedule(length=4, unit="step", warmup_steps=1), 4) == [1.0] * 4


@pytest.mark.parametrize(
    ("policy", "settings", "expected"),
    [
        ("linear", {}, [1.0, 0.75, 0.5, 0.25]),
        ("linear", {"final_factor": 0.5}, [1.0, 0.875, 0.75, 0.625]),
        ("poly", {"power": 2.0}, [1.0, (3 / 4) ** 2, (2 / 4) ** 2, (1 / 4) ** 2]),
        ("exponential", {"gamma": 0.0625}, [1.0, 0.5, 0.25, 0.125]),  # to a sixteenth over four steps
    ],
)
def test_policies_by_hand(policy, settings, expected):
    schedule = Schedule(unit="step", length=5 if policy in ("linear", "poly") else 4, policy=policy, **settings)
    torch.testing.assert_close(torch.tensor(rates(schedule, 4)), torch.tensor(expected))


def test_one_cycle_rises_to_the_rate_and_falls():
    seen = rates(Schedule(unit="step", length=20, policy="onecycle"), 20)
    assert max(seen) == pytest.approx(1.0) and 0 < seen.index(max(seen)) < 10
    assert seen[0] == pytest.approx(1 / 25) and seen[-1] < 0.01


def test_any_optimizer_of_torch_with_its_own_arguments():
    wrapper = build_optimizer(one_weight(), Optimizer(type="AdamW", betas=(0.8, 0.9)), amp="off", lr=0.1)
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.optimizer.defaults["betas"] == (0.8, 0.9)
    for wrong, words in (
        ({"type": "AdmW"}, "AdamW"),
        ({"type": "AdamW", "momentum": 0.9}, "unknown key 'momentum'"),
        ({"type": "AdamW", "beta": (0.8, 0.9)}, "'betas'"),
        ({"betas": (0.8, 0.9)}, "unknown key 'betas'"),
        ({"nesterov": True, "momentum": 0.0}, "momentum above 0"),
    ):
        with pytest.raises(InputError, match=words):
            Optimizer(**wrong)
