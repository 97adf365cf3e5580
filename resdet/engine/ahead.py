"""Training files are looked at beside the first steps of a run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from resdet.datasets.annotations import Annotations
from resdet.datasets.headers import Watch


class FilesSeen(Hook):
    """Ends a run at the step at which a training file was seen to be unreadable, and not when its turn comes.

    Args:
        data: the training set.
    """

    def __init__(self, data: Annotations) -> None:
        self._data, self._watch = data, None

    def before_train(self, runner: Runner) -> None:
        """Begin to look."""
        self._watch = Watch(self._data)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say what was found.

        Raises:
            InputError: a file that will not be read.
        """
        if self._watch is not None and self._watch.fault is not None:
            raise self._watch.fault

    def stop(self) -> None:
        """End it."""
        if self._watch is not None:
            self._watch.stop()
