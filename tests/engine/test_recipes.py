"""What the recipes of classification need besides a step: a warm-up by error, several seeds, mixing, weight decay."""

from __future__ import annotations

import json
import logging
import statistics
from types import SimpleNamespace

import pytest
import torch

from resdet import cli
from resdet.backbones.weights import read_weights
from resdet.classification.build import classifier
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.hooks import ErrorWarmup
from resdet.engine.optim import build_optimizer
from resdet.engine.settings import Optimizer
from resdet.engine.train import train, train_seeds
from resdet.errors import InputError


class Run:
    """A runner as far as the hook knows one."""

    def __init__(self, lr: float = 0.1) -> None:
        self.optim_wrapper = SimpleNamespace(param_groups=[{"lr": lr}, {"lr": 2 * lr}])
        self.iter, self.logger = 0, logging.getLogger("test")

    @property
    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optim_wrapper.param_groups]

    def step(self, hook: ErrorWarmup, error: float) -> None:
        hook.after_train_iter(self, 0, outputs={"error": torch.tensor(error)})
        self.iter += 1


@pytest.fixture(autouse=True)
def short_window(monkeypatch):
    monkeypatch.setattr(ErrorWarmup, "WINDOW", 3)


def test_the_warm_up_ends_with_the_error():
    run, hook = Run(), ErrorWarmup(factor=0.1, error=0.8, steps=100)
    hook.before_train(run)
    assert run.rates == pytest.approx([0.01, 0.02])
    for error in (0.1, 0.9, 0.9, 0.9):  # the third: (0.1 + 0.9 + 0.9) / 3 = 0.63 < 0.8
        assert hook.warming == (run.iter < 3)
        run.step(hook, error)
    assert run.rates == pytest.approx([0.1, 0.2])
    other = Run()
    hook = ErrorWarmup(factor=0.1, error=0.75, steps=100)
    hook.before_train(other)
    for _ in range(4):
        other.step(hook, 0.75)  # at the limit is not below it
    assert hook.warming and other.rates == pytest.approx([0.01, 0.02])
    other.step(hook, 0.5)
    assert not hook.warming and other.rates == pytest.approx([0.1, 0.2])


def test_it_ends_at_its_bound_whatever_the_error():
    run, hook = Run(), ErrorWarmup(factor=0.1, error=0.8, steps=4)
    hook.before_train(run)
    for _ in range(3):
        run.step(hook, 0.95)
    assert run.rates == pytest.approx([0.01, 0.02])
    run.step(hook, 0.95)
    assert run.rates == pytest.approx([0.1, 0.2])


def test_a_resumed_warm_up_goes_on():
    run, hook = Run(), ErrorWarmup(factor=0.1, error=0.8, steps=100)
    hook.before_train(run)
    run.step(hook, 0.7)
    run.step(hook, 0.7)
    checkpoint = {"meta": {}}
    hook.before_save_checkpoint(run, checkpoint)
    later, again = Run(), ErrorWarmup(factor=0.1, error=0.8, steps=100)
    again.after_load_checkpoint(later, checkpoint)
    again.before_train(later)
    assert later.rates == pytest.approx([0.01, 0.02])
    later.step(again, 0.7)
    assert later.rates == [0.1, 0.2]  # to the last bit
    done = ErrorWarmup(factor=0.1, error=0.8, steps=100)
    again.before_save_checkpoint(later, checkpoint)
    done.after_load_checkpoint(later, checkpoint)
    done.before_train(later)
    assert later.rates == [0.1, 0.2]


def test_a_run_with_it_and_its_resumption(cls_config, tmp_path):
    with pytest.raises(InputError, match="no bound"):
        train(load_config(cls_config, ["schedule.warmup_error=0.5"]), work_dir=tmp_path / "never")
    said = ["schedule.warmup_error=0.0", "schedule.warmup_steps=5", "schedule.warmup_factor=0.1"]
    rate = []
    for folder, lengths in (("whole", (6,)), ("parts", (2, 6))):
        for length in lengths:
            config = load_config(cls_config, [*said, f"schedule.length={length}", f"schedule.validate_every={length}"])
            train(config, work_dir=tmp_path / folder, resume="auto")
            rate.append(read_checkpoint(tmp_path / folder / "last.pth")["optimizer"]["param_groups"][0]["lr"])
    assert rate == pytest.approx([0.02, 0.002, 0.02])
    whole, parts = (read_checkpoint(tmp_path / name / "last.pth")["state_dict"] for name in ("whole", "parts"))
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


def test_it_is_for_classification_with_steps(cls_config, det_config, tmp_path):
    for config, options in ((det_config, []), (cls_config, ["schedule.policy='cosine'"])):
        with pytest.raises(InputError, match=r"schedule.warmup_error"):
            train(load_config(config, ["schedule.warmup_error=0.5", *options]), work_dir=tmp_path)


def test_seeds(cls_config, tmp_path, capsys):
    options = ["schedule.length=2", "schedule.validate_every=2"]
    configs = {seed: load_config(cls_config, [*options, f"run.seed={seed}"]) for seed in (0, 3)}
    summary = train_seeds(configs, work_dir=tmp_path / "a")
    content = json.loads((tmp_path / "a" / "seeds.json").read_text())
    values = [content["runs"][seed]["top1_error"] for seed in ("0", "3")]
    assert summary["top1_error"] == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    alone = train(configs[3], work_dir=tmp_path / "b")
    assert alone["top1_error"] == values[1]
    with pytest.raises(InputError, match="--resume alone"):
        train_seeds(configs, work_dir=tmp_path / "a", resume="last.pth")
    command = [str(cls_config), "--seeds", "0", "3", "--work-dir", str(tmp_path / "a"), "--resume"]
    cli.train("classification", "", [*command, "--cfg-options", *options])
    mean, deviation = summary["top1_error"]
    assert f"top1_error       {mean:.4f} ± {deviation:.4f}  over 2 seeds" in capsys.readouterr().out


def test_normalisation_layers_may_decay_less():
    net = classifier(backbone="resnet18-half", num_classes=3)
    plain = build_optimizer(net, Optimizer(weight_decay=0.1), amp="off", lr=1.0)
    split = build_optimizer(net, Optimizer(weight_decay=0.1, norm_weight_decay=0.0), amp="off", lr=1.0)
    assert len(plain.param_groups) == 1
    weights, norms = split.optimizer.param_groups
    assert (weights["weight_decay"], norms["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 1 for p in norms["params"]) and len(norms["params"]) == 2 * 20  # 20 BN layers
    total = sum(p.numel() for group in (weights, norms) for p in group["params"])
    assert total == sum(p.numel() for p in net.parameters())


def test_mixing():
    torch.manual_seed(0)
    net = classifier(backbone="resnet18-half", num_classes=3, mixup=0.2, cutmix=1.0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    seen = []
    net.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    losses = [net.train().loss(images, labels) for _ in range(4)]
    assert all(torch.isfinite(loss["loss_cls"]) and 0 <= loss["error"] <= 1 for loss in losses)
    whole = net.normalise(images)
    assert not any(torch.equal(views, whole) for views in seen)
    seen.clear()
    net.eval().loss(images, labels)
    assert torch.equal(seen[0], whole)  # only in training
    # Mixing by hand: half of each of two images, whose labels share the target.
    half = classifier(backbone="resnet18-half", num_classes=3).train()
    half.load_state_dict(net.state_dict())
    half.mixing = lambda views, labels: (
        (views + views.roll(1, 0)) / 2,
        (torch.eye(3)[labels] + torch.eye(3)[labels.roll(1)]) / 2,
    )
    mixed = (whole + whole.roll(1, 0)) / 2
    expected = half.net(mixed).log_softmax(1)
    wanted = -(expected.gather(1, labels[:, None]) + expected.gather(1, labels.roll(1)[:, None])).mean() / 2
    torch.testing.assert_close(half.loss(images, labels)["loss_cls"], wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_compiled_training(kind, cls_config, det_config, tmp_path, monkeypatch):
    compiled, real = [], torch.compile

    def without_a_compiler(function, *arguments, **settings):
        compiled.append(function)
        return real(function, *arguments, **{**settings, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    config = {"classifier": cls_config, "detector": det_config}[kind]
    options = ["schedule.length=2", "schedule.validate_every=2"]
    train(load_config(config, [*options, "run.compile=default"]), work_dir=tmp_path / "compiled")
    assert len(compiled) == {"classifier": 1, "detector": 4}[kind]  # trunk, neck, the RPN's head, region head
    train(load_config(config, options), work_dir=tmp_path / "plain")
    a, b = (read_checkpoint(tmp_path / name / "last.pth")["state_dict"] for name in ("compiled", "plain"))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-4, msg=key)


def test_an_unknown_way_to_compile(cls_config):
    with pytest.raises(InputError, match="reduce-overhead"):
        load_config(cls_config, ["run.compile=reduce"])


def test_stochastic_depth_and_checkpointing_from_a_config(cls_config, tmp_path):
    options = ["schedule.length=2", "schedule.validate_every=2", "run.seed=1"]
    names = {"plain": [], "checkpointed": ["model.checkpoint=True"], "stochastic": ["model.survival=0.5"]}
    states = {}
    for name, said in names.items():
        train(load_config(cls_config, [*options, *said]), work_dir=tmp_path / name)
        states[name] = read_checkpoint(tmp_path / name / "last.pth")["state_dict"]
    for key, value in states["plain"].items():
        torch.testing.assert_close(states["checkpointed"][key], value, msg=key)
    assert not torch.equal(states["plain"]["net.net.conv1.weight"], states["stochastic"]["net.net.conv1.weight"])
    with pytest.raises(InputError, match="survival"):
        train(load_config(cls_config, [*options, "model.survival=0"]), work_dir=tmp_path / "never")


def test_a_new_head_is_made_only_when_asked_for(cls_config, tmp_path):
    short = ["schedule.length=2", "schedule.validate_every=2"]
    train(load_config(cls_config, short), work_dir=tmp_path)
    published = tmp_path / "resnet18-half.safetensors"
    same = classifier(backbone="resnet18-half", num_classes=3, init=str(published))
    with pytest.raises(InputError, match="class count 3 vs 5"):
        classifier(backbone="resnet18-half", num_classes=5, init=str(published))
    fresh = classifier(backbone="resnet18-half", num_classes=5, init=str(published), new_head=True)
    assert fresh.net.fc.out_features == 5
    assert torch.equal(fresh.net.layer1[0].conv1.weight, same.net.layer1[0].conv1.weight)


def test_blocks_that_start_as_the_identity(tmp_path):
    net = classifier(backbone="resnet18-half", num_classes=3, zero_last_bn=True)
    assert not net.net.layer1[0].bn2.weight.any() and net.net.layer1[0].bn1.weight.all()
    with pytest.raises(InputError, match="zero_last_bn"):
        classifier(backbone="resnet18-half", num_classes=3, zero_last_bn=True, init="x.pth", new_head=True)


@pytest.mark.parametrize("which", ["last", "best"])
def test_what_is_published_and_what_is_reported(cls_config, tmp_path, which):
    said = ["schedule.length=4", "schedule.validate_every=2", f"publish.checkpoint={which}"]
    figures = train(load_config(cls_config, said), work_dir=tmp_path)
    assert figures == read_checkpoint(tmp_path / "last.pth")["meta"]["figures"]  # not chosen on the test data
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["figures"] == pytest.approx(figures)
    state, facts = read_weights(tmp_path / "resnet18-half.safetensors")
    assert facts["checkpoint"] == f"{which}.pth" and facts["figures"] == written["published"]
    kept = read_checkpoint(tmp_path / f"{which}.pth")["state_dict"]
    assert torch.equal(state["conv1.weight"], kept["net.net.conv1.weight"])


def test_load_from_another_backbone(det_config, trained, tmp_path):
    config = load_config(det_config, ["model.backbone=resnet18", f"load_from={trained / 'last.pth'}"])
    with pytest.raises(InputError, match=r"model.backbone=resnet18-half\n.*model.backbone=resnet18 of"):
        train(config, work_dir=tmp_path)
