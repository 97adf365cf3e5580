"""One side of a comparison: a net, its input and what is timed."""

from __future__ import annotations

import gc
from typing import Literal, NamedTuple

import torch

from resdet.benchmarks.jobs import Amp, Job, inference, training
from resdet.benchmarks.nets import build_theirs, framework, images_and_targets, ready_for_inference
from resdet.cpu.memory import keep_freed_memory
from resdet.engine.compiled import compile_parts


class Side(NamedTuple):
    """What a process is to measure."""

    ours: bool
    beside: str
    """The framework whose weights both sides have; of :data:`resdet.benchmarks.nets.FRAMEWORKS`."""
    net: str
    """Of :data:`resdet.benchmarks.frameworks.NETS`."""
    work: Literal["infer", "train"]
    hw: tuple[int, int]
    batch_size: int
    amp: Amp = "off"
    winograd: bool = False
    """In our net, at inference."""
    compile: str = "off"
    """Our net (:mod:`resdet.engine.compiled`)."""
    keep_memory: bool = False
    """Our side keeps freed memory (:mod:`resdet.cpu.memory`); the other runs as shipped."""
    threads: int | None = None


def side_job(side: Side) -> Job:
    """The net of a side, ready to run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frame = framework(side.beside)
    net = build_theirs(side.beside, side.net, side.hw, device)
    if side.ours:
        net = frame.twin(net, side.net, side.hw).to(device)
    net = net.train(side.work == "train")
    if side.ours and side.work == "infer":
        net = ready_for_inference(net, winograd=side.winograd)
    if side.ours or device.type == "cuda":  # theirs as shipped on a CPU; on a GPU as whoever wants speed runs it
        net = net.to(memory_format=torch.channels_last)
    if side.ours:
        compile_parts(net, side.compile)
    images, targets = images_and_targets(side.batch_size, side.hw)
    gc.collect()
    if side.ours and side.keep_memory:  # what was left over from theirs is not kept
        keep_freed_memory()
    if side.work == "infer":
        return inference(net, lambda: net.predict(images) if side.ours else frame.detect(net, images), amp=side.amp)
    losses = (lambda: net.loss(images, targets)) if side.ours else (lambda: frame.losses(net, images, targets))
    return training(net, losses, amp=side.amp, plain=not side.ours)
