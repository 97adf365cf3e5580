from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import nn

from resdet.analysis.gradients import batch_statistics
from resdet.analysis.paths import measure_paths, path_gradient, path_panels, path_shares
from resdet.backbones.shortcuts import GatedSum
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


class Times(nn.Module):
    """A block that adds ``factor`` times its input to it."""

    resizes, join = False, None

    def __init__(self, factor):
        super().__init__()
        self.factor, self.downsample = factor, nn.Identity()

    def residual(self, x):
        return self.factor * x

    def forward(self, x):
        return self.residual(x) + self.downsample(x)


class Net(nn.Module):
    def __init__(self, *factors):
        super().__init__()
        self.layer1 = nn.Sequential(*map(Times, factors))

    def forward(self, images):
        return self.layer1(images).flatten(1)


def simple(*factors):
    return Classifier(Net(*factors), mean=(0, 0, 0), std=(9e3, 9e3, 9e3))  # a softmax that does not saturate


def batch(n=2, side=16):
    chance = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, side, side), generator=chance, dtype=torch.uint8), torch.arange(n) % 3


def test_the_paths_of_three_blocks_are_counted():
    lengths = [sum(path) for path in product((0, 1), repeat=3)]  # 1: by the residual branch
    assert path_shares(3) == [lengths.count(k) / 8 for k in range(4)] == [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    assert path_shares(0) == [1.0]
    assert sum(path_shares(54)) == pytest.approx(1)


def test_three_blocks_by_hand():
    """Blocks that add 2 x, 3 x, 5 x: a path multiplies the gradient by the factors of its branches."""
    net = simple(2, 3, 5)
    inputs, labels = batch(1, side=1)
    shortcuts = path_gradient(net, inputs, labels, ())
    for chosen, factor in (((0,), 2), ((1,), 3), ((2,), 5), ((0, 2), 10), ((0, 1, 2), 30)):
        torch.testing.assert_close(path_gradient(net, inputs, labels, chosen), factor * shortcuts)
    found = measure_paths(net, [(inputs, labels)], samples=60)
    unit = float(shortcuts.norm())  # at the normalised image
    # length 1: mean of 2, 3, 5; length 2: of 6, 10, 15; sampled, so within a few tenths
    assert unit > 0.1
    assert found.gradient[0] == pytest.approx(unit) and found.gradient[3] == pytest.approx(30 * unit)
    assert found.gradient[1] == pytest.approx(10 / 3 * unit, rel=0.2)
    assert found.gradient[2] == pytest.approx(31 / 3 * unit, rel=0.2)
    assert max(found.spread[0], found.spread[3]) < 1e-6 < found.spread[1]
    products = [share * gradient for share, gradient in zip(found.share, found.gradient, strict=True)]
    assert found.contribution == pytest.approx([value / sum(products) for value in products])
    assert found.mean_length == 1.5 < found.effective_length  # long paths carry more here


@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-resnet8-C", "cifar-preresnet8"])
def test_all_paths_together_are_the_whole_gradient(name):
    torch.manual_seed(0)
    classifier = Classifier(init_backbone(name, None, num_classes=3)).double()
    images, labels = batch()
    subsets = [chosen for size in range(4) for chosen in combinations(range(3), size)]
    with batch_statistics(classifier):
        paths = [path_gradient(classifier, images, labels, chosen) for chosen in subsets]
        inputs = classifier.normalise(images).requires_grad_()
        # float32 logits, as in path_gradient
        nn.functional.cross_entropy(classifier.net(inputs).float(), labels, reduction="sum").backward()
    torch.testing.assert_close(sum(paths), inputs.grad)
    assert len(paths) == 8 and not torch.equal(paths[0], paths[1])


def test_the_net_is_as_before():
    torch.manual_seed(0)
    classifier = Classifier(init_backbone("cifar-resnet8", None, num_classes=3)).train()
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    found = measure_paths(classifier, [batch()], samples=2, seed=3)
    assert found == measure_paths(classifier, [batch()], samples=2, seed=3)
    torch.testing.assert_close(dict(classifier.state_dict()), state, rtol=0, atol=0)
    assert all(module.training for module in classifier.modules())
    assert not any(module._forward_hooks or "residual" in vars(module) for module in classifier.modules())
    assert sum(found.contribution) == pytest.approx(1)
    assert len(path_panels(found)) == 3


def test_errors():
    with pytest.raises(InputError, match="a plain net"):
        measure_paths(Classifier(init_backbone("cifar-plain8", None, num_classes=3)), [batch()])
    with pytest.raises(InputError, match="no batch of images"):
        measure_paths(simple(1), [])
    gated = Classifier(init_backbone("cifar-resnet8", None, num_classes=3))
    gated.net.layer1[0].join = GatedSum(nn.Identity())
    with pytest.raises(InputError, match=r"(?s)paths of a net.*gates"):
        measure_paths(gated, [batch()])
