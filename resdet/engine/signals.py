"""A run that is told to stop finishes its step, writes last.pth and says how to go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from resdet.engine import distributed
from resdet.engine.hooks import Checkpoints
from resdet.errors import Stopped

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl+C; Slurm's time limit and pre-emption, a container's end; a closed terminal."""


class StopOnSignal(Hook):
    """The first signal stops the run after its step, a second one at once. All processes stop at the same step.

    Args:
        checkpoints: writes last.pth.
        accumulate: steps of an update; between two updates the gradients so far would be lost.
    """

    priority = "LOWEST"

    def __init__(self, checkpoints: Checkpoints, *, accumulate: int) -> None:
        self.checkpoints, self.accumulate = checkpoints, accumulate
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop where any process was told to.

        Raises:
            Stopped: after last.pth was written.
        """
        done = runner.iter + 1
        if done % self.accumulate or distributed.everywhere(self._number is None):
            return
        number = self._number or signal.SIGTERM
        self.checkpoints.write(runner, "last.pth", done)
        self.restore()
        name = signal.Signals(number).name
        raise Stopped(number, f"stopped by {name} after step {done}; last.pth is written, go on with --resume")

    def restore(self) -> None:
        """What was before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        if self._number is not None:
            self.restore()
            signal.raise_signal(number)
        self._number = number
