from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from resdet.backbones.blocks import BasicBlock
from resdet.backbones.resnet import ResNet
from resdet.backbones.resnet_cifar import cifar_preresnet
from resdet.classification import views
from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.classification.views import dense_logits, mean_scores, view_logits
from resdet.errors import InputError


class Pooled(nn.Module):
    """The image itself is the last map."""

    def __init__(self, fc: nn.Linear, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.avgpool, self.fc = pool or nn.AdaptiveAvgPool2d(1), fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(x).flatten(1))


def ours() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(4, 4, 8, 8), num_classes=5).eval()


def torchvisions() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5).eval()


def timms() -> nn.Module:
    torch.manual_seed(2)
    return timm.create_model("seresnet18", num_classes=5, drop_rate=0.5).eval()


def last_map(net: nn.Module, images: Tensor) -> Tensor:
    relu = net.relu if hasattr(net, "relu") else net.act1
    x = net.maxpool(relu(net.bn1(net.conv1(images))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def by_places(net: nn.Module, image: Tensor, window: int) -> Tensor:
    """(3, H, W) to (K,): the linear layer at each place of the last map, then the mean over the places."""
    maps = last_map(net, image[None])[0]
    _, h, w = maps.shape
    side_y, side_x = min(window, h), min(window, w)
    logits = []
    for y in range(h - side_y + 1):
        for x in range(w - side_x + 1):
            pooled = torch.stack([channel[y : y + side_y, x : x + side_x].mean() for channel in maps])
            logits.append(net.fc.weight @ pooled + net.fc.bias)
    return sum(logits) / len(logits)


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_windows_by_hand():
    net = Pooled(nn.Linear(3, 2))
    net.fc.load_state_dict({"weight": torch.tensor([[1.0, 0, 0], [0, 0, 2]]), "bias": torch.tensor([0.0, 10])})
    images = torch.zeros(1, 3, 3, 3)
    images[0, 0, 0, 0], images[0, 2, 1, 1] = 16.0, 16.0
    # Four windows of 2x2. The corner cell is in one of them: mean 16 / 4 = 4 there, and over the places 4 / 4 = 1.
    # The centre is in all: 4 everywhere, times 2, and 10. One global average would say 16 / 9 and 32 / 9 + 10.
    torch.testing.assert_close(dense_logits(net, images, window=2), torch.tensor([[1.0, 18.0]]))
    torch.testing.assert_close(net(images), torch.tensor([[16 / 9, 32 / 9 + 10]]))  # and the net is as before


@pytest.mark.parametrize("build", [ours, torchvisions, timms])
@pytest.mark.parametrize(("hw", "window"), [((96, 160), 2), ((70, 100), 3), ((64, 64), 7), ((40, 200), 3)])
def test_dense_is_the_mean_over_places(build, hw, window):
    net = build()
    images = torch.randn(2, 3, *hw, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = torch.stack([by_places(net, image, window) for image in images])
        torch.testing.assert_close(dense_logits(net, images, window=window), expected, rtol=1e-4, atol=1e-5)
        if window == 7:  # the map is 2x2, hence one window
            torch.testing.assert_close(dense_logits(net, images), net(images))


def test_nets_that_pool_after_a_last_norm_are_open():
    net = cifar_preresnet(20, num_classes=4).eval()
    images = torch.randn(2, 3, 32, 36, generator=torch.Generator().manual_seed(3))
    maps = []
    net.avgpool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        logits = dense_logits(net, images, window=8)  # two windows in a map of 8 x 9
        net(images)
        places = [net.fc(maps[1][..., x : x + 8].mean(dim=(2, 3))) for x in (0, 1)]
    torch.testing.assert_close(logits, sum(places) / 2)


def test_the_window_of_training_size_is_the_default():
    net = Pooled(nn.Linear(3, 2))
    small, large = torch.randn(1, 3, 7, 7), torch.randn(1, 3, 7, 8)
    torch.testing.assert_close(dense_logits(net, small), net(small))
    both = (net(large[..., :7]) + net(large[..., 1:])) / 2
    torch.testing.assert_close(dense_logits(net, large), both)


def test_multi_scale_equals_averaging_by_hand():
    classifier = Classifier(ours(), mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0), window=2)
    images = [
        [randoms(3, 64, 80, seed=1), randoms(3, 96, 121, seed=2)],
        [randoms(3, 90, 64, seed=3), randoms(3, 134, 96, seed=4)],
    ]
    expected = []
    with torch.no_grad():
        for of_image in images:
            probabilities = torch.zeros(5)
            for view in of_image:
                normalised = (view - classifier.mean) / classifier.std
                probabilities += by_places(classifier.net, normalised, 2).softmax(0) / len(of_image)
            expected.append(probabilities.log())
        predicted = classifier.predict(images)
    assert predicted.shape == (2, 5) and predicted.dtype == torch.float32
    torch.testing.assert_close(predicted, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_batch_of_many_sizes_equals_one_image_at_a_time(monkeypatch):
    classifier = Classifier(ours(), window=2)
    sizes = [(64, 80), (90, 64), (64, 80), (100, 100), (64, 80)]
    images = [[randoms(3, h, w, seed=h + i), randoms(3, 2 * h, w, seed=i)] for i, (h, w) in enumerate(sizes)]
    with torch.no_grad():
        one = torch.cat([classifier.predict([of_image]) for of_image in images])
        torch.testing.assert_close(classifier.predict(images), one, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(views, "PIXELS_AT_ONCE", 2 * 64 * 80)  # passes of two, and of one where that is too much
        torch.testing.assert_close(classifier.predict(images), one, rtol=1e-4, atol=1e-5)
    assert len({tuple(row.tolist()) for row in one}) == 5


def test_views_of_one_size_share_a_pass(monkeypatch):
    passes = []

    def score(batch: Tensor) -> Tensor:
        passes.append(tuple(batch.shape))
        return batch[:, :, 0, 0]

    images = [[torch.full((3, h, 4), 10.0 * i + v) for v, h in enumerate((5, 5, 9))] for i in range(2)]
    logits = view_logits(score, images)
    assert passes == [(4, 3, 5, 4), (2, 3, 9, 4)]
    torch.testing.assert_close(logits[..., 0], torch.tensor([[0.0, 1, 2], [10, 11, 12]]))
    passes.clear()
    monkeypatch.setattr(views, "PIXELS_AT_ONCE", 60)  # three times 5 x 4, once 9 x 4
    torch.testing.assert_close(view_logits(score, images), logits, rtol=0, atol=0)
    assert passes == [(3, 3, 5, 4), (1, 3, 5, 4), (1, 3, 9, 4), (1, 3, 9, 4)]


def test_mean_scores_by_hand():
    # Two views of odds 3 : 1 and 1 : 1: probabilities 3/4 and 1/2, mean 5/8
    logits = torch.tensor([[[3.0, 1.0], [7.0, 7.0]]]).log()
    torch.testing.assert_close(mean_scores(logits), torch.tensor([[5 / 8, 3 / 8]]).log())
    # One view: untouched. Half precision: averaged and answered in float32.
    torch.testing.assert_close(mean_scores(logits[:, :1]), logits[:, 0], rtol=0, atol=0)
    assert mean_scores(logits.bfloat16()).dtype == mean_scores(logits[:, :1].bfloat16()).dtype == torch.float32
    # Probabilities too small for float32 still have an order.
    assert mean_scores(torch.tensor([[[0.0, -300, -200], [0, -300, -200]]])).argsort().tolist() == [[1, 2, 0]]


def test_ten_crops_are_averaged():
    classifier = Classifier(ours())
    crops = randoms(3, 10, 3, 64, 64)
    with torch.no_grad():
        rows = [sum(classifier.predict(crop[None]).softmax(1) for crop in image) / 10 for image in crops]
        torch.testing.assert_close(classifier.predict(crops), torch.cat(rows).log(), rtol=1e-4, atol=1e-5)
        single = classifier.predict(crops[:, 3])
        torch.testing.assert_close(classifier.predict(crops[:, 3:4]), single, rtol=0, atol=0)
        assert classifier.predict(crops[:0]).shape == (0, 5)


def test_ensembles_take_whole_images():
    nets = [Classifier(ours(), window=2), Classifier(torchvisions(), window=3)]
    images = [[randoms(3, 64, 110), randoms(3, 100, 120)]]
    with torch.no_grad():
        expected = sum(net.predict(images).softmax(1) for net in nets) / 2
        torch.testing.assert_close(Ensemble(nets).predict(images), expected.log())


def test_a_net_with_its_own_score_map():
    class Convolutional(nn.Module):
        def score_map(self, images: Tensor) -> Tensor:
            return F.max_pool2d(images, 2, stride=1)  # not linear, as VGG's fc6 and fc7 are not

    images = torch.arange(18.0).view(1, 3, 2, 3)
    # First channel 0 1 2 / 3 4 5: the places say 4 and 5, mean 4.5; 6 and 12 more in the others
    torch.testing.assert_close(dense_logits(Convolutional(), images), torch.tensor([[4.5, 10.5, 16.5]]))


class PoolsTwice(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.avgpool(x) * x)


class NeverPools(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (torchvision.models.squeezenet1_1(num_classes=2), "SqueezeNet\n.*no average pooling"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "Sequential\n.*no average pooling"),
        (Pooled(nn.Linear(3, 2), nn.AdaptiveMaxPool2d(1)), "not the average over the whole map"),
        (Pooled(nn.Linear(3, 2), nn.AdaptiveAvgPool2d(2)), "not the average over the whole map"),
        (PoolsTwice(nn.Linear(3, 2)), "ran 2 times"),
        (NeverPools(nn.Linear(3, 2)), "ran 0 times"),
    ],
)
def test_nets_that_cannot_be_opened(net, found):
    with pytest.raises(InputError, match=found + r"[\s\S]*needed: .*score_map"):
        dense_logits(net.eval(), torch.zeros(1, 3, 40, 40))
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_the_net_is_as_before_after_an_error():
    net = Pooled(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dense_logits(net, torch.zeros(1, 3, 9, 9))
    assert not net.avgpool._forward_pre_hooks


def test_views_that_do_not_fit():
    classifier = Classifier(ours())
    image = randoms(3, 40, 40)
    with pytest.raises(InputError, match=r"views of a batch\n.*\[1, 2\] per image"):
        classifier.predict([[image], [image, image]])
    with pytest.raises(InputError, match=r"\[0\] per image"):
        classifier.predict([[], []])
    with pytest.raises(InputError, match=r"shape \(1, 2, 40, 40\)"):
        classifier.predict([[image[:2]]])
    with pytest.raises(InputError, match="window = 0"):
        Classifier(ours(), window=0)
