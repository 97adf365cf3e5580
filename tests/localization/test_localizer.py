from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from resdet.detection.anchors import Anchors
from resdet.detection.preprocess import Preprocess
from resdet.errors import InputError
from resdet.localization.localizer import Look, PerClassLocalizer, stack_classes
from resdet.localization.per_class_rpn import PerClassRPN
from resdet.localization.selection import best
from resdet.localization.settings import LocalizationTest
from resdet.structures import Target

STRIDE, SIDE = 16, 32


class Brightness(nn.Module):
    """One map of stride 16: how much light there is under a window of 32 around each cell's corner."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        light = F.pad(pixels.mean(1, keepdim=True), (STRIDE, STRIDE, STRIDE, STRIDE))
        return [F.avg_pool2d(light, SIDE, stride=STRIDE)[..., : pixels.shape[2] // STRIDE, : pixels.shape[3] // STRIDE]]


def bright_localizer(crop: int = 96, multiple: int = STRIDE) -> PerClassLocalizer:
    """Says of class 0 that it is where the image is bright, of class 1 that it is where it is dark."""
    rpn = PerClassRPN(1, 2, Anchors([(SIDE,)], [STRIDE], ratios=(1.0,)))
    with torch.no_grad():
        rpn.objectness.weight.copy_(torch.tensor([3.0, -3]).view(2, 1, 1, 1))
        rpn.deltas.weight.zero_()
    return PerClassLocalizer(Preprocess(crop, 16 * crop, antialias=True, multiple=multiple), Brightness(), rpn).eval()


def image_with(box: tuple[int, int, int, int], hw: tuple[int, int]) -> Tensor:
    image = torch.zeros(3, *hw, dtype=torch.uint8)
    left, top, right, bottom = box
    image[:, top:bottom, left:right] = 255
    return image


def test_windows_by_hand():
    # (256 - 224) / 2 = 16 and (341 - 224) / 2 = 58.5, to even
    assert Look(256, 224).window((256, 341)) == (16, 58, 224, 224)
    assert Look(256).window((256, 341)) == (0, 0, 256, 341)
    assert Look(256, 224).window((223, 300)) == (0, 38, 223, 224)


def test_looks():
    net = bright_localizer(crop=224)
    assert net.looks(LocalizationTest()) == [Look(256, 224)]
    assert net.looks(LocalizationTest(view="dense")) == [Look(256)]
    assert net.looks(LocalizationTest(view="dense", sides=(100, 480))) == [Look(100), Look(480)]
    with pytest.raises(InputError, match="224 or more"):
        net.looks(LocalizationTest(sides=(256, 200)))


@pytest.mark.parametrize("view", ["centre", "dense"])
def test_a_box_is_found_again_in_its_own_frame(view):
    # Twice as large as the net sees it: 220 x 300 is 110 x 150, whose centre 96 begins at (7, 27). The corner of crop
    # cell (3, 2) is at (7 + 48, 27 + 32) = (55, 59), in the file (110, 118): an anchor of 32 is the 64 around it.
    # Dense, cell (3, 4) centres on (48, 64), in the file (96, 128).
    y, x = (110, 118) if view == "centre" else (96, 128)
    image = image_with((x - 32, y - 32, x + 32, y + 32), (220, 300))
    net, settings = bright_localizer(), LocalizationTest(view=view, sides=(110,))
    (answer,) = net.predict([image], [torch.tensor([0])], settings)
    assert_close(answer.boxes, torch.tensor([[x - 32.0, y - 32, x + 32, y + 32]]))
    # Beside an image of another shape, in the same batch, it is found too.
    both = net.predict([image_with((0, 0, 9, 9), (400, 180)), image], [torch.tensor([0])] * 2, settings)
    assert_close(both[1].boxes, answer.boxes)
    assert_close(both[1].scores, answer.scores)


def test_unequal_ratios_of_the_axes_are_exact():
    # 100 x 333 to a shorter side of 32: 32 x 106, ratios 3.125 and 3.1415. Cell (1, 4) centres on (16, 64).
    net = bright_localizer(crop=32)
    (found,) = net.candidates([image_with((0, 0, 9, 9), (100, 333))], [torch.tensor([0])], Look(32))
    assert found.boxes.shape == (1, 2 * 7, 4)  # 106 / 16 = 6.6
    y, x = 100 / 32, 333 / 106
    assert_close(found.boxes[0, 7 + 4], torch.tensor([48 * x, 0, 80 * x, 32 * y]))
    assert_close(found.boxes[0, 7 + 6], torch.tensor([80 * x, 0, 333, 32 * y]))  # clipped


def test_anchors_of_the_padding_are_left_out():
    net = bright_localizer(crop=32, multiple=64)
    images = [torch.full((3, 32, 48), 100, dtype=torch.uint8), torch.full((3, 80, 32), 100, dtype=torch.uint8)]
    found = net.candidates(images, [torch.tensor([1, 0])] * 2, Look(32))
    assert [tuple(f.boxes.shape) for f in found] == [(2, 2 * 3, 4), (2, 5 * 2, 4)]
    # Padding is dark: without the mask class 1 would be there. Zero after normalisation is the mean colour.
    assert (found[0].boxes[..., 2] <= 48).all() and (found[1].boxes[..., 3] <= 80).all()


class Edges(nn.Module):
    """One map of stride 16 whose every cell sees the whole batch's frame."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, pixels: Tensor) -> list[Tensor]:
        self.seen.append(tuple(pixels.shape))
        rows, columns = (torch.arange(length // STRIDE) for length in pixels.shape[2:])
        return [F.avg_pool2d(pixels.mean(1, keepdim=True), STRIDE) + (rows.flip(0)[:, None] + columns.flip(0)) / 9]


def test_an_answer_does_not_depend_on_the_batch():
    net, asked = bright_localizer(crop=32), torch.tensor([1, 0])
    net.backbone = Edges()
    images = [
        image_with((1, 2, 9, 20), (32, 47)),
        image_with((5, 20, 30, 70), (80, 32)),
        image_with((9, 9, 30, 30), (32, 48)),
    ]
    found = net.candidates(images, [asked] * 3, Look(32))
    assert net.backbone.seen == [(2, 3, 32, 48), (1, 3, 80, 32)]  # 47 and 48 need the same padding
    for image, answer in zip(images, found, strict=True):
        assert_close(answer, net.candidates([image], [asked], Look(32))[0])


def test_nothing_waits_for_the_numbers_of_a_window(monkeypatch):
    monkeypatch.setattr(Tensor, "new_tensor", None, raising=False)  # for which a GPU would have to be waited
    net = bright_localizer()
    (found,) = net.candidates([image_with((1, 1, 9, 9), (96, 120))], [torch.tensor([0])], Look(110, 96))
    assert found.boxes.shape[1] == 36


def test_each_class_has_its_own_box():
    image = image_with((16, 16, 48, 48), (96, 96))
    (answer,) = bright_localizer().predict([image], [torch.tensor([1, 0])], LocalizationTest(sides=(96,)))
    assert answer.labels.tolist() == [1, 0]
    assert_close(answer.boxes[1], torch.tensor([16.0, 16, 48, 48]))
    assert (answer.boxes[0] - answer.boxes[1]).abs().max() > 16
    assert (answer.scores > 0.5).all() and (answer.scores <= 1).all()


def test_the_vote_is_asked_for():
    image, net, asked = image_with((20, 20, 60, 50), (96, 96)), bright_localizer(), [torch.tensor([0, 1])]
    seen = net.candidates([image], asked, Look(96))
    (voted,) = net.predict([image], asked, LocalizationTest(view="dense", sides=(96,), vote=0.3))
    assert_close(voted, best(seen, vote=0.3)[0])
    assert (voted.boxes - best(seen)[0].boxes).abs().max() > 1


def test_scales_are_joined():
    # An object of 16 fills an anchor of 32 at twice the size only.
    image, net = image_with((56, 56, 72, 72), (128, 128)).clamp(min=100), bright_localizer(crop=64)
    settings = [LocalizationTest(view="dense", sides=sides) for sides in ((128,), (128, 256))]
    one, both = (net.predict([image], [torch.tensor([0])], each) for each in settings)
    assert_close(both[0].boxes, torch.tensor([[56.0, 56, 72, 72]]))
    assert_close(one[0].boxes, torch.tensor([[48.0, 48, 80, 80]]))
    assert both[0].scores > one[0].scores


def test_what_the_border_leaves_nothing_of_is_never_told():
    net = bright_localizer(crop=32)
    with torch.no_grad():
        net.rpn.deltas.bias[0] = 9.0  # far to the right
    (found,) = net.candidates([torch.full((3, 32, 32), 200, dtype=torch.uint8)], [torch.tensor([0, 1])], Look(32))
    assert (found.scores[0] == 0).all() and (found.scores[1] > 0).all()


def test_loss_goes_through_all_parts():
    net = bright_localizer(crop=32).train()
    image = image_with((0, 0, 32, 32), (64, 64))
    target = Target(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([1]), torch.tensor([False]), 0, (64, 64))
    losses = net.loss([image], [target])
    # Seen at half its size, the object is [0, 0, 16, 16]. Each of the four anchors contains it, so each has the best
    # IoU, 256 / 1024, and is positive; none is background.
    sum(losses.values()).backward()
    assert net.rpn.objectness.bias.grad[1] < 0 and net.rpn.objectness.bias.grad[0] == 0
    assert net.rpn.deltas.bias.grad[4:].abs().sum() > 0 and net.rpn.deltas.bias.grad[:4].abs().sum() == 0


def test_classes_by_hand_and_errors():
    assert_close(stack_classes([torch.tensor([3, 1]), torch.tensor([0, 2])], 2, 4), torch.tensor([[3, 1], [0, 2]]))
    for wrong, images in (
        ([torch.tensor([1])], 2),
        ([torch.tensor([1]), torch.tensor([1, 2])], 2),
        ([torch.tensor(1)], 1),
        ([torch.tensor([], dtype=torch.long)], 1),
    ):
        with pytest.raises(InputError, match=r"one \(C,\) tensor an image"):
            stack_classes(wrong, images, 4)
    with pytest.raises(InputError, match=r"found:  0 .. 4\n  needed: int64 in \[0, 4\)"):
        stack_classes([torch.tensor([0, 4])], 1, 4)
