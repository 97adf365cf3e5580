"""Time beside torchvision: same weights, same images, same threads, in turns within one run."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from resdet.backbones.folding import fold_batchnorm
from resdet.backbones.weights import load_exactly
from resdet.datasets.annotations import Annotations, FileNames
from resdet.detection.build import faster_rcnn_fpn
from resdet.detection.convert import from_torchvision
from resdet.structures import Target

NUM_CLASSES = 80
OBJECTS = 8
"""Ground-truth boxes on each training image; COCO has 7.3 on average."""


class Row(NamedTuple):
    """Seconds of one kind of work."""

    work: str
    ours: float
    """Median of our net."""
    torchvision: float
    ratio: float
    """Median of the ratios of neighbouring runs, ours over torchvision's; below 1 is faster."""
    runs: int


def pair(shorter_side: int, longer_side: int) -> tuple[nn.Module, nn.Module]:
    """Our ResNet-50-FPN and torchvision's, frozen BN in both, with the same random weights."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    trunk = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    theirs = FasterRCNN(trunk, NUM_CLASSES + 1, min_size=shorter_side, max_size=longer_side)
    ours = faster_rcnn_fpn(
        backbone="resnet50",
        num_classes=NUM_CLASSES,
        shorter_side=shorter_side,
        longer_side=longer_side,
        half_pixel=False,
        box_beta=1 / 9,
    )
    load_exactly(ours, from_torchvision(theirs.state_dict()), source="torchvision")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ours.to(device, memory_format=torch.channels_last), theirs.to(device)


def images_and_targets(count: int, hw: tuple[int, int]) -> tuple[list[Tensor], list[Target]]:
    """Random images, and boxes of COCO's usual sizes on them."""
    generator = torch.Generator().manual_seed(0)
    height, width = hw
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(count)]
    targets = []
    for number in range(count):
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([0.7 * width, 0.7 * height])
        side = (0.05 + 0.25 * torch.rand(OBJECTS, 2, generator=generator)) * torch.tensor([width, height])
        labels = torch.randint(0, NUM_CLASSES, (OBJECTS,), generator=generator)
        ignore = torch.zeros(OBJECTS, dtype=torch.bool)
        targets.append(Target(torch.cat([corner, corner + side], 1), labels, ignore, number, hw))
    return images, targets


def time_inference(hw: tuple[int, int], *, runs: int) -> Row:
    """One image, from uint8 to detections."""
    ours, theirs = (net.eval() for net in pair(min(hw), max(hw)))
    fold_batchnorm(ours)  # as whatever loads a checkpoint for inference does
    images, _ = images_and_targets(1, hw)
    device = next(ours.parameters()).device

    def run_theirs() -> None:
        with torch.no_grad():
            theirs([image.to(device).float() / 255 for image in images])

    return _row(f"inference {hw[0]}x{hw[1]}", lambda: ours.predict(images), run_theirs, runs=runs)


def time_training(hw: tuple[int, int], *, runs: int, batch_size: int = 2) -> Row:
    """Forward, backward and the update of one batch."""
    ours, theirs = (net.train() for net in pair(min(hw), max(hw)))
    images, targets = images_and_targets(batch_size, hw)
    device = next(ours.parameters()).device
    optimizers = [torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-6) for net in (ours, theirs)]

    def update(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    def run_theirs() -> None:
        truth = [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in targets]
        update(optimizers[1], theirs([image.to(device).float() / 255 for image in images], truth))

    def run_ours() -> None:
        update(optimizers[0], ours.loss(images, targets))

    return _row(f"training step, {batch_size} images {hw[0]}x{hw[1]}", run_ours, run_theirs, runs=runs)


def worker_memory() -> tuple[float, float, float]:
    """What annotations the size of COCO's training set cost a loader process that reads all of them.

    Returns:
        MiB of the arrays themselves; MiB of private memory that a forked process adds over the arrays, and over the
        same annotations as a list of dictionaries. Linux only.
    """
    images, boxes = 118_287, 860_001  # of instances_train2017.json
    generator = np.random.default_rng(0)
    corners = generator.random((boxes, 4), dtype=np.float32)
    first = np.concatenate([[0], np.sort(generator.integers(0, boxes, images - 1)), [boxes]])
    annotations = Annotations(
        source="synthetic",
        image_root="",
        classes=("object",),
        category_ids=np.ones(1, dtype=np.int64),
        image_ids=np.arange(images),
        files=FileNames([f"{number:012}.jpg" for number in range(images)]),
        hw=np.full((images, 2), 480, dtype=np.int32),
        first=first.astype(np.int64),
        boxes=corners,
        labels=np.zeros(boxes, dtype=np.int64),
        ignore=np.zeros(boxes, dtype=bool),
        areas=corners[:, 0].copy(),
        box_ids=np.arange(1, boxes + 1),
    )
    listed = [
        {
            "file": annotations.files[i],
            "boxes": [{"bbox": box, "label": 0} for box in corners[annotations.rows(i)].tolist()],
        }
        for i in range(images)
    ]
    size = sum(a.nbytes for a in vars(annotations).values() if isinstance(a, np.ndarray)) + 16 * images + 8 * images

    def read_arrays() -> None:
        for i in range(images):
            _ = annotations.files[i], annotations.boxes[annotations.rows(i)].sum()

    def read_lists() -> None:
        for entry in listed:
            _ = entry["file"], sum(box["bbox"][0] for box in entry["boxes"])

    return size / 2**20, _private_growth_mib(read_arrays), _private_growth_mib(read_lists)


def _private_growth_mib(read: Callable[[], None]) -> float:
    """Private memory that a forked process gains while it reads."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        gc.disable()
        before = _private_mib()
        read()
        sender.send(_private_mib() - before)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def _private_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, or of the GPU's memory in use."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _row(work: str, ours: Callable[[], object], theirs: Callable[[], object], *, runs: int) -> Row:
    for function in (ours, theirs):  # memory, kernels and caches settle
        function()
    seconds = [(_seconds(ours), _seconds(theirs)) for _ in range(runs)]
    mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
    return Row(work, mine, other, statistics.median(a / b for a, b in seconds), runs)


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
