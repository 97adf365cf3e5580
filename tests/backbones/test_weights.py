from __future__ import annotations

import errno
import hashlib
import os

import pytest
import torch
from torch import nn

from resdet.backbones import weights as weights_module
from resdet.backbones.blocks import BasicBlock
from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.published import file_hash, publish
from resdet.backbones.registry import BACKBONES, Backbones
from resdet.backbones.resnet import ResNet
from resdet.backbones.weights import init_backbone, load_exactly, read_weights
from resdet.errors import InputError

FACTS = {"backbone": "tiny", "classes": ["cat", "dög"], "metrics": {"top1": 0.5}, "commit": "abc"}


def tiny(num_classes=3, width=4):
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(width, 6, 8, 10), num_classes=num_classes)


@pytest.fixture
def backbones(monkeypatch):
    """A registry with two tiny nets, in place of the real one."""
    registry = Backbones()
    registry.register("tiny", tiny, channels=(4, 6, 8, 10))
    registry.register("other", tiny, channels=(4, 6, 8, 10))
    monkeypatch.setattr(weights_module, "BACKBONES", registry)
    return registry


def save(path, content):
    torch.save(content, path)
    return path


def test_published_files_return_what_went_in(tmp_path):
    state = tiny().state_dict()
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    path = publish(tmp_path / "sub" / "net.safetensors", state, FACTS)
    read, metadata = read_weights(path)
    assert metadata == FACTS
    torch.testing.assert_close(read, dict(state))
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_shared_tensors_can_be_published(tmp_path):
    one = torch.arange(6.0)
    read, _ = read_weights(publish(tmp_path / "a.safetensors", {"a": one, "b": one[:3]}, {}))
    torch.testing.assert_close(read, {"a": one, "b": one[:3]})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = publish(tmp_path / "net.safetensors", {"a": torch.zeros(2)}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(InputError, match=r"net.safetensors\n  found:  No space left(.|\n)*MiB free"):
        publish(path, {"a": torch.ones(2)}, {})
    assert read_weights(path)[0]["a"].sum() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_publishing_elsewhere(tmp_path):
    with pytest.raises(InputError, match=r"suffix '.pth'\n  needed: a name that ends in .safetensors"):
        publish(tmp_path / "net.pth", {}, {})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model_state": s},
        lambda s: {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}},
        lambda s: {f"net.module.{k}": v for k, v in s.items()},
        lambda s: {f"module.net.{k}": v for k, v in s.items()},
    ],
)
def test_envelopes_and_prefixes(tmp_path, wrap):
    state = dict(tiny().state_dict())
    read, metadata = read_weights(save(tmp_path / "a.pth", wrap(state)))
    torch.testing.assert_close(read, state)
    assert metadata == {}


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    state = {"backbone.a": torch.zeros(1), "head.b": torch.zeros(1)}
    assert set(read_weights(save(tmp_path / "a.pt", state))[0]) == set(state)


class Payload:
    """Says so when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.pth", {"state_dict": {"a": torch.zeros(1)}, "extra": Payload()})
    with pytest.raises(
        InputError, match=r"a.pth\n  found:  objects that only unpickling could read(.|\n)*state_dict\(\)"
    ):
        read_weights(path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>Not found</html>"])
def test_damaged_files(tmp_path, name, damage):
    path = tmp_path / name
    state = {"a": torch.zeros(1000)}
    publish(path, state, {}) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=name) as caught:
        read_weights(path)
    assert "damaged" in str(caught.value) or "no weights" in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "a": torch.zeros(1)}, [torch.zeros(1)], torch.zeros(1)])
def test_files_without_a_state_dict(tmp_path, content):
    with pytest.raises(InputError, match=r"needed: a state dict, bare or under one of state_dict_ema, "):
        read_weights(save(tmp_path / "a.pth", content))


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"b.pth\n  found:  no such file"):
        read_weights(tmp_path / "b.pth")


def test_exact_loading_copies_everything():
    source, net = tiny(), tiny()
    loaded = load_exactly(net, source.state_dict(), source="x")
    torch.testing.assert_close(dict(net.state_dict()), dict(source.state_dict()))
    counters = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert loaded == len(net.state_dict()) - counters


def test_frozen_and_plain_nets_exchange_weights():
    plain, frozen = tiny(), freeze_batchnorm(tiny())
    load_exactly(frozen, plain.state_dict(), source="x")
    torch.testing.assert_close(frozen.conv1.weight, plain.conv1.weight)
    load_exactly(plain, freeze_batchnorm(tiny()).state_dict(), source="x")


def test_refused_loading_names_the_keys_and_changes_nothing():
    net = tiny()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {f"extra.{i}": torch.zeros(1) for i in range(5)} | tiny().state_dict()
    del state["fc.bias"]
    state["conv1.weight"] = torch.zeros(4, 1, 7, 7)
    with pytest.raises(InputError) as caught:
        load_exactly(net, state, source="some.pth")
    needed = sum(not k.endswith("num_batches_tracked") for k in before)
    assert str(caught.value) == (
        f"some.pth\n  found:  {needed - 2} keys fit; 1 missing (fc.bias); "
        "5 unexpected (extra.0, extra.1, extra.2, and 2 more); "
        "1 mis-shaped (conv1.weight [4, 1, 7, 7] for [4, 3, 7, 7])\n"
        f"  needed: exactly the {needed} keys of ResNet"
    )
    torch.testing.assert_close(dict(net.state_dict()), before)


def test_allowed_differences():
    net, state = tiny(), tiny(num_classes=9).state_dict()
    fc = net.fc.weight.detach().clone()
    loaded = load_exactly(net, state, source="x", allowed_missing=["fc.*"], allowed_unexpected=["fc.*"])
    assert loaded == sum(not key.endswith("num_batches_tracked") for key in state) - 2  # without fc.bias, fc.weight
    torch.testing.assert_close(net.fc.weight.data, fc)
    torch.testing.assert_close(net.layer4[0].conv1.weight.data, state["layer4.0.conv1.weight"])
    for allowed in ({"allowed_missing": ["fc.*"]}, {"allowed_unexpected": ["fc.*"]}):
        with pytest.raises(InputError, match="2 mis-shaped"):
            load_exactly(net, state, source="x", **allowed)


def test_only_the_forbidden_keys_are_blamed():
    state = tiny(num_classes=9).state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(InputError) as caught:
        load_exactly(tiny(), state, source="x", allowed_missing=["fc.*"], allowed_unexpected=["fc.*"])
    assert "1 unexpected (extra)" in str(caught.value) and "fc" not in str(caught.value)


@pytest.mark.parametrize(
    ("file_classes", "own_classes", "hint"),
    [
        ((80, 80), (20, 20), "class count 80 vs 20 (a"),
        ((81, 320), (21, 80), "class count 80 vs 20"),
        ((80, 7), (20, 9), ""),
    ],
)
def test_class_counts_are_named(file_classes, own_classes, hint):
    def heads(sizes):
        return nn.Sequential(*[nn.Linear(2, size) for size in sizes])

    with pytest.raises(InputError, match="4 mis-shaped") as caught:
        load_exactly(heads(own_classes), heads(file_classes).state_dict(), source="x")
    assert hint in str(caught.value) and ("class count" in str(caught.value)) == bool(hint)


def test_backbones_from_nothing_and_from_files(tmp_path, backbones):
    source = tiny(num_classes=5)
    path = publish(tmp_path / "a.safetensors", source.state_dict(), FACTS)
    net = init_backbone("tiny", path, num_classes=5)
    torch.testing.assert_close(net.fc.weight, source.fc.weight)
    features = init_backbone("tiny", str(path))
    torch.testing.assert_close(features.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    assert features(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    tuned = init_backbone("tiny", path, num_classes=8, new_classifier=True)
    assert tuned.fc.out_features == 8
    torch.testing.assert_close(tuned.conv1.weight, source.conv1.weight)
    assert init_backbone("tiny", num_classes=8).fc.out_features == 8
    with pytest.raises(InputError, match="class count 5 vs 8"):
        init_backbone("tiny", path, num_classes=8)


def test_files_without_classifier_give_features(tmp_path, backbones):
    state = {k: v for k, v in tiny().state_dict().items() if not k.startswith("fc")}
    init_backbone("tiny", path := save(tmp_path / "a.pth", state))
    with pytest.raises(InputError, match=r"2 missing \(fc.bias, fc.weight\)"):
        init_backbone("tiny", path, num_classes=3)


def test_another_architecture_is_refused_by_name_even_if_it_would_fit(tmp_path, backbones):
    path = publish(tmp_path / "a.safetensors", tiny().state_dict(), FACTS)
    with pytest.raises(InputError, match=r"a.safetensors\n  found:  weights of backbone 'tiny'\n  needed: .*'other'"):
        init_backbone("other", path)


def test_the_same_net_of_another_library_is_accepted(tmp_path):
    state = BACKBONES.build("resnet18", num_classes=2).state_dict()
    path = publish(tmp_path / "a.safetensors", state, {"backbone": "timm/resnet18.a1_in1k"})
    net = init_backbone("torchvision/resnet18", path, num_classes=2)
    torch.testing.assert_close(net.fc.weight.data, state["fc.weight"])


def test_pretrained_downloads(monkeypatch):
    import timm
    import torchvision.models

    calls = []

    def fake(model, **options):
        calls.append((model, options))
        net = BACKBONES.build("resnet18", num_classes=4)
        nn.init.constant_(net.fc.weight, 7.0)
        return net

    real_timm, real_torchvision = timm.create_model, torchvision.models.get_model
    monkeypatch.setattr(timm, "create_model", lambda m, **o: (fake if o.get("pretrained") else real_timm)(m, **o))
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda m, **o: (fake if "weights" in o else real_torchvision)(m, **o)
    )
    for name in ("timm/resnet18", "torchvision/resnet18"):
        assert (init_backbone(name, "pretrained", num_classes=4).fc.weight == 7).all()
    assert calls == [("resnet18", {"pretrained": True}), ("resnet18", {"weights": "DEFAULT"})]


@pytest.mark.parametrize(("library", "function"), [("timm", "create_model"), ("torchvision.models", "get_model")])
def test_pretrained_without_network(monkeypatch, library, function):
    import importlib

    module = importlib.import_module(library)
    real = getattr(module, function)

    def offline(model, **options):
        if "num_classes" in options:
            return real(model, **options)
        raise OSError("Name or service not known\nlong story")

    monkeypatch.setattr(module, function, offline)
    name = f"{library.partition('.')[0]}/resnet18"
    with pytest.raises(InputError, match=r"pretrained'\n  found:  Name or service not known\n  needed: network access"):
        init_backbone(name, "pretrained")


def test_pretrained_needs_a_library():
    with pytest.raises(InputError, match=r"no published download(.|\n)*torchvision/resnet18, timm/resnet18"):
        init_backbone("resnet18", "pretrained")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(value):
    net = nn.Linear(2, 2)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    state["weight"][1, 0] = value
    before = net.weight.clone()
    with pytest.raises(InputError, match=r"NaN or infinity in weight"):
        load_exactly(net, state, source="a.pth")
    assert torch.equal(net.weight, before)
