"""Same weights, same numbers: our VGG-16 against torchvision's and timm's, from random weights and BN statistics."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from resdet.backbones import BACKBONES
from resdet.backbones.vgg import from_timm
from resdet.backbones.weights import load_exactly


def filled(net, generator):
    """A net made on the meta device, with random weights; uniform ones, since the net is large."""
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6 / module.weight[0].numel()) ** 0.5  # He's variance, 2 / fan-in
            module.weight.data.uniform_(-bound, bound, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5, generator=generator)
    return net.eval()


@pytest.mark.parametrize(("name", "model"), [("vgg16", "vgg16"), ("vgg16-bn", "vgg16_bn")])
def test_torchvision_and_timm_logits(name, model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.device("meta"):
        theirs, timms = torchvision.models.get_model(model), timm.create_model(model, pretrained=False)
        ours = BACKBONES.build(name)
    filled(theirs, generator)
    state = theirs.state_dict()
    load_exactly(ours.to_empty(device="cpu").eval(), state, source="torchvision")
    with torch.no_grad():
        logits = theirs(images)
        assert logits.isfinite().all() and 0.1 < logits.std() < 1e3
        torch.testing.assert_close(ours(images), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.score_map(images)[:, :, 0, 0], logits, rtol=1e-4, atol=1e-4)

    # timm holds the same numbers as convolutions: its own shapes and names, filled from the state, must give the same.
    names = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
    renamed = {}
    for key, value in timms.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        renamed[key] = state[f"{names.get(layer, layer)}.{leaf}"].view(value.shape)
    timms.load_state_dict(renamed, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(timms.eval()(images), logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[key]) for key, value in from_timm(timms.state_dict()).items())
