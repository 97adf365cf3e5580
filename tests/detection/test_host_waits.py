"""How often a step makes the host wait for a GPU: counted on pretended tensors, without one.

A pretended CUDA tensor has a shape and a device and no numbers. Whatever needs a number of it on the host, or a shape
that hangs on numbers, is an operation of a few known names.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from resdet.detection import level_nms
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.engine.tasks.detection import DetectionAdapter
from resdet.structures import Target

WAITS = ("nms", "nonzero", "_local_scalar_dense", "masked_select", "unique", "equal", "bincount", "repeat_interleave")
pytestmark = pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated:FutureWarning")


class HostWaits(TorchDispatchMode):
    """Counts the operations after which the host has to wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        devices = {
            a.device.type for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)
        }
        if "cuda" in devices or "cuda" in str(kwargs.get("device")):
            masks = [i for i in args[1] if i is not None] if name in ("index", "index_put", "index_put_") else []
            known = name == "repeat_interleave" and kwargs.get("output_size") is not None
            if (name in WAITS or any(i.dtype in (torch.bool, torch.uint8) for i in masks)) and not known:
                self.counts[name] += 1
            if name in ("_to_copy", "copy_"):
                source = args[name == "copy_"].device.type
                goal = args[0].device.type if name == "copy_" else str(kwargs.get("device", source)).split(":")[0]
                later = args[2] if len(args) > 2 else kwargs.get("non_blocking")
                if {source, goal} == {"cpu", "cuda"} and not (later and goal == "cuda"):
                    self.counts[f"copy to {goal}"] += 1
        return function(*args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def pretended():
    """Some versions of torch (2.6) ask for a real driver even where tensors are pretended."""
    try:
        waits(faster_rcnn_fpn, images=1, training=False)
    except RuntimeError as error:
        if "CUDA driver" not in str(error):
            raise
        pytest.skip(f"torch {torch.__version__} pretends no CUDA tensors without a driver")


def small(builder):
    arguments = {"test_proposals": (100, 20), "train_proposals": (100, 20), "rois_per_image": 16}
    return builder(backbone="resnet18-half", num_classes=5, shorter_side=64, longer_side=128, **arguments)


def waits(builder, *, images: int, training: bool) -> Counter[str]:
    with FakeTensorMode(shape_env=ShapeEnv()):
        with torch.device("cuda"):
            net = small(builder).train(training)
        shown = [torch.empty(3, 64, 96, dtype=torch.uint8) for _ in range(images)]
        truth = [
            Target(torch.empty(n, 4), torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.bool), 0, (64, 96))
            for n in range(images)
        ]
        with HostWaits() as seen, pytest.MonkeyPatch.context() as patch:
            # Pretended boxes never settle.
            patch.setattr(level_nms, "is_settled", lambda before, after: seen.counts.update(["settled"]) is None)
            if training:  # not backwards: autograd's own engine would want a real device
                task = DetectionAdapter(net)
                task.data_preprocessor._device = torch.device("cuda")  # as task.to() would set
                task(*task.data_preprocessor([shown, truth], True), mode="loss")
            else:
                batch = net.preprocess(shown)
                features, limits = net.features(batch.pixels), batch.limits()
                regions = net.propose(features, limits).boxes.flatten(0, 1)
                index = torch.zeros(len(regions), dtype=torch.long, device="cuda")
                net.classify(net.embed(features, regions, index, net.context(features, limits)))
    return seen.counts


@pytest.mark.parametrize("builder", [faster_rcnn_c4, faster_rcnn_fpn])
@pytest.mark.parametrize("images", [1, 3])
def test_a_training_step_waits_for_nms_alone(builder, images):
    assert waits(builder, images=images, training=True) == {"settled": 1}


def test_many_boxes_take_several_rounds(monkeypatch):
    monkeypatch.setattr(level_nms, "PAIRS", 10 * 100**2)  # an image has five levels of at most 100: two at a time
    assert waits(faster_rcnn_fpn, images=5, training=True) == {"settled": 3}


def test_large_groups_go_one_by_one(monkeypatch):
    monkeypatch.setattr(level_nms, "MOST", 90)
    assert waits(faster_rcnn_c4, images=3, training=True) == {"nms": 3}


@pytest.mark.parametrize("builder", [faster_rcnn_c4, faster_rcnn_fpn])
@pytest.mark.parametrize("images", [1, 3])
def test_the_stages_of_inference_wait_for_nms_alone(builder, images):
    assert waits(builder, images=images, training=False) == {"settled": 1}


def test_the_count_sees_what_waits():
    with FakeTensorMode(shape_env=ShapeEnv()), HostWaits() as seen:
        x = torch.empty(5, device="cuda")
        torch.where(x > 0)
        x[x > 0]
        x[x > 0] = torch.empty(5, device="cuda")[:1]
        x.cpu()
        x.masked_fill_(x > 0, 1.0)
        torch.arange(5, device="cuda").repeat_interleave(torch.arange(5, device="cuda"), output_size=10)
        torch.ones(3).nonzero()
        cpu = torch.ones(3)
        cpu.to("cuda", non_blocking=True)
        torch.zeros(3, device="cuda").copy_(cpu, non_blocking=True)
        assert sum(seen.counts.values()) == 4, seen.counts
        cpu.to("cuda")
        torch.zeros(3, device="cuda").copy_(cpu)
    assert seen.counts["copy to cuda"] == 2 and sum(seen.counts.values()) == 6, seen.counts
