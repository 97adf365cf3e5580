"""Files of pictures are looked at beside the first steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from resdet.datasets.annotations import Annotations
from resdet.datasets.headers import Watch


class FilesSeen(Hook):
    """Ends a run at the step at which a file was seen to be unreadable, and not when its turn comes.

    Args:
        sets: what is trained on; what is tested on where it was too large to be looked at before.
    """

    def __init__(self, sets: Sequence[Annotations]) -> None:
        self._sets, self._watches = sets, list[Watch]()

    def before_train(self, runner: Runner) -> None:
        """Begin to look."""
        self._watches = [Watch(data) for data in self._sets]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say what was found.

        Raises:
            InputError: a file that will not be read.
        """
        for watch in self._watches:
            if watch.fault is not None:
                raise watch.fault

    def stop(self) -> None:
        """End it."""
        for watch in self._watches:
            watch.stop()
