"""One side of a comparison: a net, its input and what is timed. It lives in a process of its own (:mod:`.workers`)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resdet.benchmarks.footprint import Memory, MemoryMeter
from resdet.benchmarks.nets import build_theirs, framework, images_and_targets, ready_for_inference
from resdet.benchmarks.stations import Profile, places, wait
from resdet.cpu.memory import keep_freed_memory
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine.compiled import compile_parts
from resdet.engine.optim import autocast, build_optimizer
from resdet.engine.settings import Optimizer

LEARNING_RATE = 1e-6
"""So small that the losses stay what they are; momentum and weight decay are the usual ones."""


class Side(NamedTuple):
    """What a process is to measure."""

    ours: bool
    beside: str
    """The framework whose weights both sides have; of :data:`resdet.benchmarks.nets.PACKAGES`."""
    net: str
    """Of :data:`resdet.benchmarks.nets.NETS`."""
    work: Literal["infer", "train"]
    hw: tuple[int, int]
    batch_size: int
    amp: Literal["off", "bf16", "fp16"] = "off"
    winograd: bool = False
    """In our net, at inference."""
    compile: str = "off"
    """Our net (:mod:`resdet.engine.compiled`)."""
    keep_memory: bool = False
    """Our side keeps freed memory (:mod:`resdet.cpu.memory`); the other runs as shipped."""
    threads: int | None = None


class Job:
    """The net of a side, ready to run."""

    def __init__(self, side: Side) -> None:
        if side.threads:
            torch.set_num_threads(side.threads)
        self.side = side
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        frame = framework(side.beside)
        net = build_theirs(side.beside, side.net, side.hw, device)
        self._detect, self._losses = frame.detect, frame.losses
        if side.ours:
            net = frame.twin(net, side.net, side.hw).to(device)
            self._detect, self._losses = FasterRCNN.predict, FasterRCNN.loss
        training = side.work == "train"
        self.net = net.train(training)
        if side.ours and not training:
            self.net = ready_for_inference(net, winograd=side.winograd)
        if side.ours or device.type == "cuda":  # theirs as shipped on a CPU; on a GPU as whoever wants speed runs it
            self.net = self.net.to(memory_format=torch.channels_last)
        if side.ours:
            compile_parts(self.net, side.compile)
        if training:
            kind = build_optimizer if side.ours else _PlainOptimizer
            self._optimizer = kind(self.net, Optimizer(), amp=side.amp, lr=LEARNING_RATE)
        self._images, self._targets = images_and_targets(side.batch_size, side.hw)
        del net
        gc.collect()
        if side.ours and side.keep_memory:  # what was left over from theirs is not kept
            keep_freed_memory()
        self._meter = MemoryMeter()
        self._answer: Any = None
        self._profile: Profile | None = None

    def run(self) -> float:
        """Seconds of one step: uint8 images to detections, or to an update of the weights."""
        started = time.perf_counter()
        self._step()
        wait()
        return time.perf_counter() - started

    def memory(self) -> Memory:
        """Of the process, since the net was built."""
        return self._meter.read()

    def answer(self) -> Any:
        """The last step's: (boxes, scores, labels) of each image as arrays, or the sum of the losses."""
        if self.side.work == "train":
            return float(self._answer)
        return [tuple(part.float().cpu().numpy() for part in found) for found in self._answer]

    def flops(self) -> int:
        """Of one step: convolutions and matrix products, forwards and, in training, backwards.

        RoIAlign, norms and other things done element by element are not counted.
        """
        with FlopCounterMode(display=False) as counter:
            self._step()
        return counter.get_total_flops()

    def peak(self) -> float:
        """FLOP/s of this machine: the best of several matrix products in the dtype and with the threads of the side."""
        cuda = torch.cuda.is_available()
        dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.side.amp]
        a, b = torch.rand(2, *[8192 if cuda else 2048] * 2, dtype=dtype, device="cuda" if cuda else "cpu")
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            torch.mm(a, b)
            wait()
            seconds.append(time.perf_counter() - started)
        return 2 * len(a) ** 3 / min(seconds)

    def profile(self) -> dict[str, float]:
        """Seconds of each station of one step. From the first call on, every step pays for the clocks."""
        if self._profile is None:
            found = places(self.net)
            if self.side.work == "train":
                found += [("backward", self._optimizer, "backward"), ("optimizer", self._optimizer, "step")]
            self._profile = Profile([*found, ("rest", self, "_step")])
        self._profile.clear()
        self._step()
        return {station: seconds for station, seconds in self._profile.seconds.items() if seconds}

    def _step(self) -> None:
        if self.side.work == "infer":
            with autocast(self.side.amp):
                self._answer = self._detect(self.net, self._images)
            return
        with self._optimizer.optim_context(self.net):
            loss = sum(self._losses(self.net, self._images, self._targets).values())
        self._optimizer.update_params(loss)
        self._answer = loss.detach()


class _PlainOptimizer:
    """What the training loops of others do, under the names of ours."""

    def __init__(self, net: nn.Module, given: Optimizer, *, amp: str, lr: float) -> None:
        trained = [p for p in net.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(trained, lr, **given.arguments())
        self.scaler = torch.amp.GradScaler(enabled=amp == "fp16")
        self.optim_context: Callable = lambda net: autocast(amp)

    def update_params(self, loss: Tensor) -> None:
        self.sgd.zero_grad()
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.scaler.step(self.sgd)
        self.scaler.update()
