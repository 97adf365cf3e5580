from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resdet import boxes as box_ops
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.detection.faster_rcnn import FasterRCNN, Suppression
from resdet.detection.postprocess import suppress, to_original
from resdet.errors import InputError
from resdet.inference.fusion import fuse
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.inference.view import View, Views
from resdet.inference.voting import vote
from resdet.structures import Detections, ScoredBoxes

K = 3


def noise(*hw: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


IMAGES = [noise(64, 96), noise(60, 85, seed=1), noise(120, 175, seed=2)]
"""Of three sizes that are padded alike at each of the shorter sides below, so that alone they look as in a batch."""


def small_net(kind: str, *, seed: int = 0, **settings) -> FasterRCNN:
    """Random, with scores and boxes that vary."""
    torch.manual_seed(seed)
    settings = {"shorter_side": 64, "longer_side": 160, "test_proposals": (40, 6)} | settings
    if kind == "c4":
        net = faster_rcnn_c4(backbone="resnet18-half", num_classes=K, anchor_sizes=(16, 32, 64), **settings)
    else:
        net = faster_rcnn_fpn(
            backbone="resnet18-half",
            num_classes=K,
            anchor_sizes=(8, 16, 32, 64, 128),
            pyramid_channels=16,
            head_width=16,
            **settings,
        )
    for layer, std in (
        (net.rpn.head.conv, 0.1),
        (net.rpn.head.objectness, 0.5),
        (net.rpn.head.deltas, 0.05),
        (net.roi_head.class_logits, 0.08 if kind == "c4" else 0.4),
        (net.roi_head.box_deltas, 0.02 if kind == "c4" else 0.1),
    ):
        nn.init.normal_(layer.weight, std=std)
    net.eval().requires_grad_(False)
    batch = net.preprocess([noise(64, 96, seed=9)])  # what all regions share must not decide
    features, limits = net.features(batch.pixels), batch.limits()
    vector = net.embed(features, limits * 0.5, torch.zeros(1, dtype=torch.long), net.context(features, limits))[0]
    net.roi_head.class_logits.bias.copy_(-net.roi_head.class_logits.weight @ vector)
    net.roi_head.box_deltas.bias.copy_(-net.roi_head.box_deltas.weight @ vector)
    return net


def equal(first: Sequence[Detections], second: Sequence[Detections]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("kind", ["c4", "fpn"])
@pytest.mark.parametrize(("context", "class_agnostic"), [(False, False), (True, False), (False, True)])
def test_by_default_the_net_itself(kind, context, class_agnostic):
    net = small_net(kind, context=context, class_agnostic=class_agnostic)
    found = Predictor([net]).predict(IMAGES)
    assert min(len(answer.boxes) for answer in found) > 3
    assert equal(found, net.predict(IMAGES))


# The slow reference: one image, one region, one scale, one net at a time.


@lru_cache(maxsize=40)
def see(net: FasterRCNN, image: Tensor, size: int | None) -> tuple[list[Tensor], tuple[int, int], Tensor]:
    """Maps of one image, its size before padding, and its clip limits."""
    batch = net.preprocess([image], size)
    return net.features(batch.pixels), batch.input_hw[0], batch.limits()


@lru_cache(maxsize=40)
def context_of(net: FasterRCNN, image: Tensor, size: int) -> Tensor:
    features, _, limits = see(net, image, size)
    return net.context(features, limits)


def propose_slowly(
    net: FasterRCNN, image: Tensor, sizes: Sequence[int], common_hw: tuple[int, int]
) -> list[tuple[float, Tensor]]:
    found = []
    for size in sizes:
        features, hw, limits = see(net, image, size)
        boxes, scores, valid = (part[0] for part in net.propose(features, limits))
        found += [(scores[r].item(), box_ops.scale(boxes[r], hw, common_hw)) for r in torch.where(valid)[0].tolist()]
    if len(sizes) == 1:
        return [box for _, box in found]
    kept: list[Tensor] = []
    for _, box in sorted(found, key=lambda pair: -pair[0]):
        if all(box_ops.iou(box[None], other[None]) <= net.rpn.nms_iou for other in kept):
            kept.append(box)
    return kept[: net.rpn.test_topk.post_nms]


def score_slowly(
    net: FasterRCNN, image: Tensor, region: Tensor, own: int, s: TestSettings, common_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(K, 4) boxes and (K,) probabilities of a region."""
    features, hw, _ = see(net, image, own)
    context = context_of(net, image, own)
    zero = torch.zeros(1, dtype=torch.long)
    if not s.scales:
        vector = net.embed(features, box_ops.scale(region, common_hw, hw)[None], zero, context)
    else:
        seen = [see(net, image, size) for size in s.scales]
        moved = [box_ops.scale(region, common_hw, hw) for _, hw, _ in seen]
        off = [abs(((b[2] - b[0]) * (b[3] - b[1])).sqrt().item() - s.region_side) for b in moved]
        pairs = [(off[i] + off[i + 1], (i, i + 1)) for i in range(len(off) - 1)] or [(0, (0,))]
        vectors = [net.embed(seen[i][0], moved[i][None], zero, context) for i in min(pairs)[1]]
        vector = torch.stack(vectors).amax(0)
    logits, deltas = net.classify(vector)
    height, width = common_hw
    boxes = box_ops.decode(deltas[0], region[None], box_ops.HEAD)
    boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2).flatten(1)
    return boxes.expand(K, 4), logits[0].exp()[:K] / logits[0].exp().sum()


def look_slowly(
    nets: Sequence[FasterRCNN], image: Tensor, size: int | None, s: TestSettings
) -> tuple[ScoredBoxes, tuple[int, int]]:
    common_hw = see(nets[0], image, size)[1]
    regions = []
    for net in nets:
        own = size or net.preprocess.test_side
        regions += propose_slowly(net, image, [own] if s.scale_proposals == "one" else s.scales, common_hw)
    boxes, probabilities = [torch.zeros(0, K, 4)], [torch.zeros(0, K)]
    for _ in range(1 + s.refine):
        moved = []
        for region in regions:
            answers = [score_slowly(net, image, region, size or net.preprocess.test_side, s, common_hw) for net in nets]
            box, probability = (sum(parts) / len(nets) for parts in zip(*answers, strict=True))
            boxes.append(box[None])
            probabilities.append(probability[None])
            moved.append(box[probability.argmax()])
        regions = moved
    return ScoredBoxes(torch.cat(boxes), torch.cat(probabilities)), common_hw


def predict_slowly(
    nets: Sequence[FasterRCNN], image: Tensor, s: TestSettings, suppression: Suppression | None = None
) -> Detections:
    suppression = suppression or nets[0].suppression
    frame = see(nets[0], image, None)[1]
    scored = []
    for mirrored in (False, True)[: 1 + s.flip]:
        for size in (None, *s.sizes):
            (boxes, probabilities), hw = look_slowly(nets, image.flip(2) if mirrored else image, size, s)
            if mirrored:
                boxes = torch.stack([hw[1] - boxes[..., 2], boxes[..., 1], hw[1] - boxes[..., 0], boxes[..., 3]], -1)
            scored.append(ScoredBoxes(box_ops.scale(boxes, hw, frame), probabilities))
    if s.merge == "nms":
        scored = [ScoredBoxes(torch.cat([a.boxes for a in scored]), torch.cat([a.probabilities for a in scored]))]
    if s.merge == "wbf":  # each look keeps what is faint, and the threshold is that of the fused score
        faint = suppression._replace(score_threshold=min(0.01, suppression.score_threshold))
        found = [suppress([a], **faint._asdict()) for a in scored]
    else:
        found = [suppress([a], **suppression._asdict()) for a in scored]
    if s.vote:
        found = [vote(kept, [a], iou=s.vote) for kept, a in zip(found, scored, strict=True)]
    (answer,) = (
        found[0]
        if s.merge == "nms"
        else fuse(found, score_threshold=suppression.score_threshold, max_per_image=suppression.max_per_image)
    )
    return to_original(answer, frame, image.shape[1:])


# RoIAlign, as RoIPool gives neighbours the very same scores, whose order then hangs on rounding.
NETS: dict[str, Callable[[], list[FasterRCNN]]] = {
    "c4": lambda: [small_net("c4", pooling="align")],
    "one proposal": lambda: [small_net("c4", pooling="align", test_proposals=(40, 1), context=True)],
    "fpn agnostic context": lambda: [small_net("fpn", class_agnostic=True, context=True)],
    "c4 context + fpn agnostic": lambda: [
        small_net("c4", pooling="align", context=True),
        small_net("fpn", seed=1, class_agnostic=True, shorter_side=96),
    ],
    "fpn + one proposal of c4": lambda: [
        small_net("fpn"),
        small_net("c4", seed=1, pooling="align", shorter_side=48, test_proposals=(40, 1)),
    ],
}
SCALES = {"scales": (48, 64, 96), "region_side": 40.0}


@pytest.mark.parametrize(
    ("nets", "settings"),
    [
        ("c4", {"refine": 1}),
        ("one proposal", {"refine": 2, "vote": 0.5}),
        ("fpn agnostic context", {"refine": 2}),
        ("c4", SCALES),
        ("one proposal", SCALES),
        ("fpn agnostic context", SCALES | {"scale_proposals": "all"}),
        ("fpn agnostic context", {"scales": (96,)}),
        ("c4 context + fpn agnostic", {}),
        ("fpn + one proposal of c4", {"refine": 1}),
        ("c4", {"flip": True}),
        ("fpn agnostic context", {"sizes": (48, 96)}),
        ("fpn agnostic context", {"flip": True, "sizes": (96,), "merge": "wbf"}),
        ("fpn + one proposal of c4", SCALES | {"refine": 1, "sizes": (80,), "scale_proposals": "all"}),
        ("c4 context + fpn agnostic", SCALES | {"refine": 1, "vote": 0.5, "flip": True}),
        ("fpn + one proposal of c4", {"refine": 1, "vote": 0.6, "flip": True, "sizes": (96,), "merge": "wbf"}),
    ],
    ids=str,
)
@torch.no_grad()
def test_against_loops(nets, settings):
    nets, settings = NETS[nets](), TestSettings(**settings)
    predictor = Predictor(nets, settings)
    images = IMAGES[: 3 - min(2, settings.flip + bool(settings.scales) + bool(settings.sizes))]  # the reference is slow
    found = predictor.predict(images)
    for image, answer in zip(images, found, strict=True):
        expected = predict_slowly(nets, image, settings)
        assert len(expected.boxes) > 0
        assert_close(tuple(answer), tuple(expected), rtol=1e-4, atol=2e-3)


ALL = SCALES | {"refine": 1, "vote": 0.5, "flip": True, "merge": "wbf", "scale_proposals": "all"}


@pytest.mark.parametrize("settings", [{}, {"refine": 1, "vote": 0.5}, ALL], ids=str)
def test_a_batch_is_its_images_every_time(settings):
    predictor = Predictor(NETS["fpn + one proposal of c4"](), TestSettings(**settings))
    images = IMAGES[1:]
    together = predictor.predict(images)
    assert equal(together, predictor.predict(images))
    assert [int(answer.boxes.max()) // 100 for answer in together] == [0, 1]  # each in the frame of its file
    for image, found in zip(images, together, strict=True):
        (alone,) = predictor.predict([image])
        assert len(found.boxes) > 5
        assert_close(tuple(alone), tuple(found), rtol=1e-4, atol=2e-3)


def test_what_an_image_comes_with_does_not_show():
    for net in (small_net("c4"), Predictor([small_net("fpn")], TestSettings(refine=1))):
        images = [noise(61, 90), noise(130, 67, seed=1), noise(61, 90, seed=2), noise(64, 200, seed=3)]
        together = net.predict(images)
        for image, found in zip(images, together, strict=True):
            (alone,) = net.predict([image])
            assert len(found.boxes) > 3
            assert_close(tuple(alone), tuple(found), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"refine": 2}, ALL], ids=str)
def test_images_without_proposals(settings):
    nets = [small_net("c4", context=True), small_net("fpn")]
    for net in nets:
        net.rpn.head.deltas.bias.view(-1, 4)[:, 2:] = -30.0  # nothing is left of any anchor
    for team in (nets[:1], nets):
        for answer in Predictor(team, TestSettings(**settings)).predict(IMAGES):
            assert [tuple(part.shape) for part in answer] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Suppression(0.07, 0.4, 50)),
        ({"score_threshold": 0.0, "nms_iou": 0.3}, Suppression(0.0, 0.3, 50)),
        ({"max_per_image": 2, "class_agnostic_nms": True}, Suppression(0.07, 0.4, 2, class_agnostic=True)),
        ({"nms": "linear"}, Suppression(0.07, 0.4, 50, "linear")),
        ({"nms": "gaussian", "sigma": 0.3}, Suppression(0.07, 0.4, 50, "gaussian", sigma=0.3)),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_last_step_is_that_of_the_settings_or_else_of_the_first_net(settings, expected):
    net = small_net("fpn", score_threshold=0.07, nms_iou=0.4, max_per_image=50)
    other = small_net("fpn", seed=1, score_threshold=0.9, nms_iou=0.9, max_per_image=1)
    settings = TestSettings(**settings)
    assert Predictor([net, other], settings).suppression == expected
    (found,) = Predictor([net], settings).predict(IMAGES[:1])
    assert_close(tuple(found), tuple(predict_slowly([net], IMAGES[0], settings, expected)), rtol=1e-4, atol=2e-3)
    assert net.suppression == Suppression(0.07, 0.4, 50)


class CheapMaps(nn.Module):
    """Maps of the right shapes."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.shapes = list(zip(channels, strides, strict=True))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(pixels, s).mean(1, keepdim=True).repeat(1, c, 1, 1) for c, s in self.shapes]


def cheap(net: FasterRCNN) -> FasterRCNN:
    net.backbone = CheapMaps(net.backbone.channels, net.backbone.strides)
    if hasattr(net.roi_head.embedding, "conv5"):
        net.roi_head.embedding.conv5 = nn.Conv2d(128, 256, 1, stride=7)
    return net


class Calls:
    """Counts the calls of a net's stages, and the regions of each call."""

    def __init__(self, net: FasterRCNN) -> None:
        self.rows: dict[str, list[int]] = {}
        for name, count in (
            ("features", len),
            ("propose", lambda maps, limits: len(limits)),
            ("context", lambda maps, limits: len(limits)),
            ("embed", lambda maps, boxes, images, context: len(boxes)),
            ("classify", len),
        ):
            self.rows[name] = []
            setattr(net, name, self._counted(getattr(net, name), self.rows[name], count))
        self.rows["embedding"] = []
        net.roi_head.embedding.register_forward_hook(lambda _, __, vectors: self.rows["embedding"].append(len(vectors)))

    def _counted(self, stage: Callable, rows: list[int], count: Callable) -> Callable:
        def run(*arguments):
            rows.append(count(*arguments))
            return stage(*arguments)

        return run

    def take(self) -> dict[str, list[int]]:
        taken = {name: list(rows) for name, rows in self.rows.items()}
        for rows in self.rows.values():
            rows.clear()
        return taken


@pytest.mark.parametrize("kinds", [[("fpn", True)], [("c4", True), ("fpn", False)]], ids=["one net", "two nets"])
def test_what_each_combination_costs(kinds):
    own = (32, 48)
    nets = [
        cheap(small_net(kind, context=context, shorter_side=side, test_proposals=(20, 3)))
        for (kind, context), side in zip(kinds, own, strict=False)
    ]
    calls = [Calls(net) for net in nets]
    images = [noise(40, 50), noise(40, 50, seed=1)]
    pyramids = [{}, {"scales": (40,)}, {"scales": (32, 64)}, {"scales": (32, 64), "scale_proposals": "all"}]
    for refine, pyramid, flip, sizes in product((0, 1, 2), pyramids, (False, True), ((), (48,))):
        predictor = Predictor(nets, TestSettings(refine=refine, flip=flip, sizes=sizes, region_side=24.0, **pyramid))
        predictor.predict(images)
        looks = (1 + flip) * (1 + len(sizes))
        scales = pyramid.get("scales", ())
        seen = [call.take() for call in calls]
        for (_, context), side, rows in zip(kinds, own, seen, strict=False):
            assert rows["features"] == [2] * (1 + flip) * len({side, *sizes, *scales})  # each map once
            views = (1 + flip) * len({side, *sizes})
            assert rows["propose"] == [2] * ((1 + flip) * len(scales) if "scale_proposals" in pyramid else views)
            assert rows["context"] == [2] * views  # the image's vector once, however many rounds
            assert len(rows["classify"]) == looks * (1 + refine)
            assert len(rows["embed"]) == len(rows["classify"]) * max(1, len(scales))
            assert sum(rows["embed"]) == sum(rows["classify"]) * min(2, max(1, len(scales)))
            assert sum(rows["embedding"]) == sum(rows["embed"]) + 2 * views * context
            # All nets see the regions of all, and each round as many as the one before.
            assert rows["classify"] == seen[0]["classify"]
            for look in range(looks):
                rounds = rows["classify"][look * (1 + refine) :][: 1 + refine]
                assert len(set(rounds)) == 1 and 2 <= rounds[0] <= 2 * 3 * len(nets)


@pytest.fixture(scope="module")
def shared_rows() -> list[list[dict[str, int]]]:
    """Calls of both nets in each of the rows of a small Table 9, which share their views."""
    net, other = cheap(small_net("fpn", context=True)), cheap(small_net("c4", seed=1))
    calls = [Calls(net), Calls(other)]
    rows = [
        ([net], {}),
        ([net], {"refine": 1}),
        ([net], SCALES | {"refine": 1}),
        ([net, other], SCALES | {"refine": 1}),
    ]
    images = [noise(64, 96, seed=seed) for seed in range(3)]
    views = Views(images)
    costs, answers = [], []
    for nets, settings in rows:
        predictor = Predictor(nets, TestSettings(**settings))
        answers.append(predictor.predict(images, views))
        costs.append([{name: len(rows) for name, rows in call.take().items()} for call in calls])
        assert predictor.images == 3
        # Shared or not, each is charged for all it stands on.
        expected = {"backbone", "context", "proposals", "union", "regions", "suppression"}
        assert set(predictor.clock.seconds) == expected | ({"refinement"} if predictor.settings.refine else set())
        assert min(predictor.clock.seconds.values()) > 0
    for (nets, settings), shared in zip(rows, answers, strict=True):
        assert equal(Predictor(nets, TestSettings(**settings)).predict(images), shared)
    return costs


@pytest.mark.parametrize(
    ("stage", "calls"),
    [
        ("features", [[1, 0], [0, 0], [2, 0], [0, 3]]),
        ("context", [[1, 0], [0, 0], [0, 0], [0, 1]]),
        ("classify", [[1, 0], [2, 0], [2, 0], [2, 2]]),  # the last row's regions are those of both nets
        pytest.param(
            "propose",
            [[1, 0], [0, 0], [0, 0], [0, 1]],
        ),
    ],
)
def test_rows_share_what_they_have_in_common(shared_rows, stage, calls):
    # One net; + refinement; + two more scales; + a second net at three scales.
    assert [[cost[stage] for cost in row] for row in shared_rows] == calls


def test_seconds_and_images_add_up():
    predictor = Predictor([small_net("fpn")], TestSettings(vote=0.5, flip=True, merge="wbf"))
    assert not predictor.clock.seconds and predictor.images == 0
    predictor.predict(IMAGES[:1])
    once = dict(predictor.clock.seconds)
    stages = {"backbone", "context", "proposals", "union", "regions", "suppression", "voting", "fusion"}
    assert set(once) == stages and min(once.values()) > 0
    predictor.predict(IMAGES[:2])
    assert predictor.images == 3 and all(predictor.clock.seconds[stage] > once[stage] for stage in stages)


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operators have made and that still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        answer = function(*arguments, **(settings or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return answer

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak(work: Callable[[], object]) -> int:
    with torch.no_grad(), LiveBytes() as bytes_:
        work()
    return bytes_.peak


def test_live_bytes():
    def work() -> None:
        a = torch.ones(1000)  # 4000 bytes
        b = a.view(10, 100) + 1  # a view owns nothing
        del a
        (b + 1).sum()

    assert peak(work) == 8000 + 4  # b, b + 1 and the sum


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_a_pyramid_needs_no_more_memory_than_its_largest_level(kind):
    # The net's own size is one of the small ones. With few regions running the trunk costs most, and the smaller levels
    # fit into what the largest has freed.
    net = small_net(kind, shorter_side=128, longer_side=128, test_proposals=(50, 4))
    image = [noise(128, 128)]
    predictor = Predictor([net], TestSettings(scales=(64, 128, 192, 256), region_side=48.0))
    largest = peak(lambda: View(net, image, 256))
    assert largest <= peak(lambda: predictor.predict(image)) <= largest + 1024  # bytes of limits and boxes


def test_a_pyramid_of_many_regions_needs_no_more_than_one_level_and_the_regions():
    # The head costs most, and all regions look at the two largest levels. It runs on one level at a time, and what is
    # kept beside it, the other levels' maps, is less than the pooled regions.
    net = small_net("c4", shorter_side=128, longer_side=128, test_proposals=(50, 40))
    net.rpn.nms_iou = 1.0
    image = [noise(128, 128)]
    pooled = len(net.score(image)[0][0].boxes) * 128 * 14 * 14 * 4
    largest = peak(lambda: View(net, image, 256))
    alone = peak(lambda: Predictor([net], TestSettings(scales=(256,))).predict(image))
    together = peak(
        lambda: Predictor([net], TestSettings(scales=(64, 128, 192, 256), region_side=1000.0)).predict(image)
    )
    assert alone > 1.5 * largest
    assert together <= alone + pooled


def test_predictors_refuse():
    net, other = small_net("fpn"), faster_rcnn_fpn(backbone="resnet18-half", num_classes=5, pyramid_channels=8)
    with pytest.raises(InputError) as caught:
        Predictor([net, other])
    assert str(caught.value) == ("ensemble\n  found:  nets of [3, 5] classes\n  needed: the same classes in all")
    with pytest.raises(InputError, match="nets of \\[\\] classes"):
        Predictor([])
    with pytest.raises(InputError, match=r"test.scales\n  found:  \(96, 64\)"):
        Predictor([net], TestSettings(scales=(96, 64)))


def test_a_further_size_must_be_another_one():
    nets = [small_net("fpn")]
    with pytest.raises(InputError, match=r"test.sizes\n  found:  64, the net's own"):
        Predictor(nets, TestSettings(sizes=(96, 64)))


def test_the_threshold_holds_for_what_is_fused():
    net = small_net("fpn")
    image = noise(60, 70)
    wanted = TestSettings(flip=True, merge="wbf", score_threshold=0.3)
    (low,) = Predictor([net], wanted.updated(score_threshold=0.0)).predict([image])
    threshold = float(low.scores[len(low.scores) // 2])
    (answer,) = Predictor([net], wanted.updated(score_threshold=threshold)).predict([image])
    assert len(answer.scores) and (answer.scores > threshold).all()
    assert len(answer.scores) >= (low.scores > threshold).sum() - 1  # none was lost before it could be fused


@pytest.mark.parametrize(
    ("nets", "settings"),
    [
        ("c4", {}),
        ("fpn agnostic context", {"flip": True, "sizes": (96,)}),
        ("fpn + one proposal of c4", SCALES | {"refine": 1, "flip": True}),
    ],
    ids=str,
)
def test_each_tile_is_an_image_of_its_own(nets, settings):
    # Without suppression nothing is lost: the answer is what the whole image and each tile give on their own.
    every = TestSettings(**settings, nms_iou=1.0, score_threshold=0.02, max_per_image=100_000)
    nets, image = NETS[nets](), noise(64, 150, seed=5)
    alone = Predictor(nets, every)
    (whole,) = alone.predict([image])
    expected, dropped = [whole], 0
    for left, right in ((0, 96), (48, 144), (54, 150)):  # 96 wide, 48 in common, the last one moved inside
        (answer,) = alone.predict([image[:, :, left:right]])
        uncut = (answer.boxes[:, 0] >= 0.96) | (left == 0)
        uncut &= (answer.boxes[:, 2] <= 96 - 0.96) | (right == 150)
        dropped += int((~uncut).sum())
        assert uncut.any()
        moved = answer.boxes + torch.tensor([left, 0.0, left, 0.0])
        expected.append(Detections(moved[uncut], answer.scores[uncut], answer.labels[uncut]))
    assert dropped > 5
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*expected, strict=True))
    (found,) = Predictor(nets, every.updated(tiles=96, tile_overlap=0.5)).predict([image])
    assert len(found.boxes) == len(boxes) > len(whole.boxes)
    order = scores.sort(descending=True, stable=True).indices
    assert_close(found.scores, scores[order], rtol=1e-5, atol=1e-6)
    pairs = ((box_ops.iou(found.boxes, boxes) > 0.99) & (found.labels[:, None] == labels)).float()
    assert (pairs.amax(0) == 1).all() and (pairs.amax(1) == 1).all()


@pytest.mark.parametrize("settings", [{}, ALL], ids=str)
def test_an_image_no_larger_than_a_tile_is_as_without(settings):
    nets = NETS["fpn + one proposal of c4"]()
    plain, tiled = (Predictor(nets, TestSettings(**settings, tiles=tiles)) for tiles in (None, 96))
    images = [noise(64, 96), noise(96, 90, seed=1)]
    assert equal(plain.predict(images), tiled.predict(images))
    larger = [noise(64, 97)]
    assert not equal(plain.predict(larger), tiled.predict(larger))


def test_a_batch_with_tiles_is_its_images():
    settings = TestSettings(**ALL, tiles=64, tile_overlap=0.25)
    predictor = Predictor(NETS["fpn + one proposal of c4"](), settings)
    images = [noise(100, 130), noise(60, 60, seed=1), noise(100, 130, seed=2)]
    together = predictor.predict(images)
    assert predictor.images == 3
    for image, found in zip(images, together, strict=True):
        (alone,) = predictor.predict([image])
        assert len(found.boxes) > 5
        assert_close(tuple(alone), tuple(found), rtol=1e-4, atol=2e-3)


def test_all_tiles_together_are_one_answer_of_a_fusion():
    # Of two looks, what both see keeps its mean score; of five tiles as looks of their own it would keep 2 / 6.
    net = small_net("fpn")
    settings = TestSettings(tiles=64, merge="wbf", score_threshold=0.0)
    predictor, seen = Predictor([net], settings), []
    predictor.fuse = lambda looks: seen.append(looks) or Predictor.fuse(predictor, looks)
    predictor.predict([noise(64, 230)])
    assert [len(look) for look in seen[0]] == [1, 1]


def test_tiles_need_no_more_memory_than_the_largest_piece():
    # Each tile is let go before the next and before the whole image, which is as large as a tile for the net. The image
    # itself counts where it is cut into tiles.
    net = small_net("fpn", shorter_side=128, longer_side=128, test_proposals=(50, 4))
    image = [noise(512, 512)]
    alone, tiled = (
        Predictor([net], TestSettings(tiles=tiles, tile_overlap=0.0, score_threshold=0.5)) for tiles in (None, 128)
    )
    without = peak(lambda: alone.predict(image))
    assert peak(lambda: tiled.predict(image)) <= without + image[0].nbytes + 100_000  # a view of a tile has 500 kB
    assert without > 1_000_000
