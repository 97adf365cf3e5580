"""A net at work, one step at a time, and what a step costs. It lives in a process of its own (:mod:`.workers`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resdet.benchmarks.clock import seconds
from resdet.benchmarks.footprint import Memory, MemoryMeter
from resdet.benchmarks.stations import Profile, places
from resdet.engine.optim import autocast, build_optimizer
from resdet.engine.settings import Optimizer

LEARNING_RATE = 1e-6
"""So small that the losses stay what they are; momentum and weight decay are the usual ones."""
Amp = Literal["off", "bf16", "fp16"]


class Job:
    """A net and its step. Memory counts from here on, or from :meth:`rest`.

    Args:
        net: whose stations are measured.
        step: one step of its work.
        optimizer: of a training, with methods ``backward`` and ``step``.
    """

    def __init__(self, net: nn.Module, step: Callable[[], Any], optimizer: Any = None) -> None:
        self.net, self._step, self._optimizer = net, step, optimizer
        self._answer: Any = None
        self._profile: Profile | None = None
        self.rest()

    def rest(self) -> None:
        """What is held now is the resting memory."""
        self._meter = MemoryMeter()

    def run(self) -> float:
        """Seconds of one step."""
        return seconds(self._go)

    def memory(self) -> Memory:
        """The process's."""
        return self._meter.read()

    def answer(self) -> Any:
        """The last step's: (boxes, scores, labels) of each image as arrays, or the sum of the losses."""
        if isinstance(self._answer, Tensor):
            return float(self._answer)
        return [tuple(part.float().cpu().numpy() for part in found) for found in self._answer]

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad)

    def flops(self) -> int:
        """Of one step: convolutions and matrix products, forwards and, in training, backwards.

        RoIAlign, norms and other things done element by element are not counted.
        """
        with FlopCounterMode(display=False) as counter:
            self._step()
        return counter.get_total_flops()

    def profile(self) -> dict[str, float]:
        """Seconds of each station of one step. From the first call on, every step pays for the clocks."""
        if self._profile is None:
            found = places(self.net)
            if self._optimizer:
                found += [("backward", self._optimizer, "backward"), ("optimizer", self._optimizer, "step")]
            self._profile = Profile([*found, ("rest", self, "_step")])
        self._profile.clear()
        self._step()
        return {station: spent for station, spent in self._profile.seconds.items() if spent}

    def peak(self, amp: Amp) -> float:
        """FLOP/s of this machine: the best of several matrix products with the job's threads."""
        cuda = torch.cuda.is_available()
        dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        a, b = torch.rand(2, *[8192 if cuda else 2048] * 2, dtype=dtype, device="cuda" if cuda else "cpu")
        return 2 * len(a) ** 3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(8))

    def _go(self) -> None:
        self._answer = self._step()


def inference(net: nn.Module, detect: Callable[[], Any], *, amp: Amp = "off") -> Job:
    """A job whose step is from images to detections."""

    def step() -> Any:
        with autocast(amp):
            return detect()

    return Job(net, step)


def training(
    net: nn.Module, losses: Callable[[], Mapping[str, Tensor]], *, amp: Amp = "off", plain: bool = False
) -> Job:
    """A job whose step is from images to an update of the weights; a plain one is that of other training loops."""
    optimizer = (_PlainOptimizer if plain else build_optimizer)(net, Optimizer(), amp=amp, lr=LEARNING_RATE)

    def step() -> Tensor:
        with optimizer.optim_context(net):
            loss = sum(value for name, value in losses().items() if "loss" in name)
        optimizer.update_params(loss)
        return loss.detach()

    return Job(net, step, optimizer)


class _PlainOptimizer:
    """What the training loops of others do, under the names of ours."""

    def __init__(self, net: nn.Module, given: Optimizer, *, amp: Amp, lr: float) -> None:
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
