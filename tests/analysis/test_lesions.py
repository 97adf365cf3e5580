from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from resdet.analysis.lesions import (
    deleted,
    draw_orders,
    draw_subsets,
    errors_under,
    kendall_tau,
    lesion_panels,
    measure_lesions,
    reordered,
    residual_blocks,
)
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


class Shift(Times):
    """One that adds a constant, so that the order counts."""

    def residual(self, x):
        return torch.full_like(x, self.factor)


class Net(nn.Module):
    """The blocks applied to the images' mean; class 0 if that is above 4."""

    def __init__(self, *blocks):
        super().__init__()
        self.layer1 = nn.Sequential(*blocks)

    def forward(self, images):
        x = self.layer1(images.mean((1, 2, 3)))
        return torch.stack([x, torch.full_like(x, 4)], dim=1)


def simple(*blocks):
    return Classifier(Net(*blocks), mean=(0, 0, 0), std=(1, 1, 1))


def images(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_two_blocks_by_hand():
    """x (1 + 1) (1 + 2) = 6 x; without the first block 3 x, without the second 2 x, without both x.

    Images 1 and 2 of class 0, told by an output above 4:
    whole 6, 12: right; without the first 3, 6: one wrong; without the second 2, 4: the tie goes to class 0, one wrong;
    without both 1, 2: both wrong.
    """
    net = simple(Times(1), Times(2))
    blocks = residual_blocks(net.net)
    for chosen, factor in (((), 6), (blocks[:1], 3), (blocks[1:], 2), (blocks, 1)):
        with deleted(chosen):
            torch.testing.assert_close(net(images(1, 2))[:, 0], torch.tensor([1.0, 2.0]) * factor)
    batches = [(images(1), torch.zeros(1).long()), (images(2), torch.zeros(1).long())]
    lesions = [partial(deleted, chosen) for chosen in ((), blocks[:1], blocks[1:], blocks)]
    assert errors_under(net, batches, lesions) == [0, 0.5, 0.5, 1]
    found = measure_lesions(net, batches, draws=3)
    assert (found.names, found.resizing, found.intact) == (["layer1.0", "layer1.1"], [], 0)
    assert found.single == [((1,), 0.5), ((2,), 0.5)]
    assert found.several[-1] == ((1, 2), 1)
    assert {swap.error for swap in found.swaps} == {0}  # products commute


def test_swapped_by_hand():
    """x + 1, then doubled: 2 x + 2; swapped: 2 x + 1."""
    net = simple(Shift(1), Times(1))
    for order, expected in (((0, 1), 4.0), ((1, 0), 3.0)):
        with reordered(net.net, order):
            assert float(net(images(1))[0, 0]) == expected
    found = measure_lesions(net, [(images(1), torch.ones(1).long())], draws=2)
    # 4 is no less than 4: class 0, wrong; after an odd number of swaps 3, class 1, right
    assert found.swaps == [(1, -1, 0), (1, -1, 0), (2, 1, 1), (2, 1, 1)]


@pytest.mark.parametrize(
    "name",
    ["cifar-resnet14", "cifar-resnet14-B", "cifar-preresnet14", "resnet18-C"],
)
def test_laws_on_real_nets(name):
    torch.manual_seed(0)
    classifier = Classifier(init_backbone(name, None, num_classes=3)).eval()
    net, x = classifier.net, torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    blocks, state = residual_blocks(net), list(net.state_dict())
    whole = classifier(x)
    with deleted(()), reordered(net, range(len(blocks))):
        torch.testing.assert_close(classifier(x), whole, rtol=0, atol=0)
    keeps = next(block for block in blocks[1:] if not block.resizes)
    features = torch.rand(2, keeps.conv1.in_channels, 8, 8)  # activated: not negative
    changed = next(block for block in blocks if block.resizes)
    entering = torch.rand(2, changed.conv1.in_channels, 8, 8)
    with deleted(blocks):
        around = keeps.downsample(features)  # an identity, except of option C
        torch.testing.assert_close(keeps(features), around if name.startswith("cifar") else around.relu())
        if name.startswith("cifar-resnet"):
            torch.testing.assert_close(changed(entering), changed.downsample(entering).relu())
        assert not torch.equal(classifier(x), whole)
    torch.testing.assert_close(classifier(x), whole, rtol=0, atol=0)
    assert list(net.state_dict()) == state


def test_a_real_net_through_all_of_it():
    torch.manual_seed(0)
    classifier = Classifier(init_backbone("cifar-resnet14", None, num_classes=3))
    batches = [(torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), torch.arange(4) % 3)]
    found = measure_lesions(classifier, batches, draws=2, seed=1)
    assert found == measure_lesions(classifier, batches, draws=2, seed=1)
    assert found.resizing == [3, 5]
    assert [row.blocks for row in found.single] == [(i,) for i in range(1, 7)]
    assert {len(row.blocks) for row in found.several} == {1, 2, 3, 4, 5, 6}
    assert {swap.pairs for swap in found.swaps} == {1, 2, 3, 4, 5, 6}
    assert {swap.tau for swap in found.swaps} == {
        1,
        1 - 2 / 15,
    }  # blocks 1 and 2 are the only pair of one stage and size
    assert [panel.title for panel in lesion_panels(found)] == [
        "one block deleted",
        "several blocks deleted",
        "blocks swapped within stages",
    ]


def test_the_first_preactivated_block_is_not_swapped():
    """cifar-preresnet20 keeps size in blocks 1, 2, 3 | 5, 6 | 8, 9; without the first: one pair in each stage."""
    torch.manual_seed(0)
    classifier = Classifier(init_backbone("cifar-preresnet20", None, num_classes=3))
    batches = [(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), torch.zeros(2).long())]
    found = measure_lesions(classifier, batches, draws=1)
    assert {round((1 - swap.tau) * 18) for swap in found.swaps} <= {0, 1, 2, 3}  # neighbours only: 0 to 3 inversions


def test_draws():
    chance = torch.Generator().manual_seed(0)
    subsets = draw_subsets(4, 50, chance)
    assert len(subsets) == len(set(subsets)) == 4 + 6 + 4 + 1  # every subset but the empty one
    assert all(list(subset) == sorted(subset) for subset in subsets)
    orders = draw_orders(4, [(0, 1), (2, 3)], 3, chance)
    assert [swaps for swaps, _ in orders] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert all(sorted(order) == [0, 1, 2, 3] and set(order[:2]) == {0, 1} for _, order in orders)
    assert draw_orders(4, [], 3, chance) == []


def test_kendall_tau():
    assert kendall_tau([0, 1, 2, 3]) == 1
    assert kendall_tau([3, 2, 1, 0]) == -1
    assert kendall_tau([0, 2, 1, 3]) == pytest.approx(1 - 2 * 1 / 6)  # one of six pairs is the wrong way round
    assert kendall_tau([0]) == 1
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    signs = [math.copysign(1, order[j] - order[i]) for i in range(9) for j in range(i + 1, 9)]
    assert kendall_tau(order) == pytest.approx(sum(signs) / len(signs))


def test_errors():
    with pytest.raises(InputError, match=r"(?s)block 1 of ResidualNet.*no shortcut.*a plain net.*cifar-resnet20"):
        residual_blocks(init_backbone("cifar-plain8", None, num_classes=3))
    with pytest.raises(InputError, match="of another library"):
        residual_blocks(init_backbone("torchvision/resnet18", None, num_classes=3))
    with pytest.raises(InputError, match=r"Linear without layer1"):
        residual_blocks(nn.Linear(1, 1))
    with pytest.raises(InputError, match="no images"):
        errors_under(simple(Times(1)), [], [])


def test_blocks_of_a_plain_net_are_left_out():
    torch.manual_seed(0)
    net = init_backbone("cifar-plain14", None, num_classes=3).eval()
    blocks, x = residual_blocks(net, plain=True), torch.rand(1, 3, 32, 32)
    whole = net(x)
    with deleted([blocks[1]]):  # of one size: what comes in goes out
        torch.testing.assert_close(blocks[1](torch.ones(1, 16, 4, 4)), torch.ones(1, 16, 4, 4))
        assert not torch.equal(net(x), whole)
    with deleted([blocks[2]]):  # thinned and padded from 16 to 32 channels
        answer = blocks[2](torch.ones(1, 16, 4, 4))
        assert answer.shape == (1, 32, 2, 2) and answer.sum() == 16 * 4
    torch.testing.assert_close(net(x), whole)
    found = measure_lesions(
        Classifier(net), [(torch.randint(0, 256, (4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))], draws=1
    )
    assert len(found.single) == 6 and found.resizing == [3, 5]
