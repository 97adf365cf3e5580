"""What loader processes send: through shared memory where there is room, else through a pipe.

torch sends each tensor by a file in ``/dev/shm``, from a thread of its own. Where that is full (Docker gives 64 MB) or
the process may open no more files, the thread loses the batch, and the training waits for it without end. Here the
loader process shares what it has made before it hands it over, and sends what finds no room as bytes.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from resdet.errors import InputError

try:
    import resource
except ImportError:  # Windows has none, nor such limits
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
SMALL = 1 << 16
"""Bytes up to which a pipe costs less than a file."""
SPARE = 16
"""Files that must be left for the thread that sends."""
FILES = 65_536
"""Open files that are asked for, where the system allows more than it gives by itself (1,024)."""
_ENDED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited)")
ROOM = "docker run --shm-size=8g or --ipc=host; or loader.workers=0"


class Sending:
    """A collate function for loader processes.

    Args:
        collate: samples to a batch: tensors in lists, tuples and named tuples.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self._told = False

    def __call__(self, samples: Any) -> Any:
        """The batch; tensors in it arrive as tensors."""
        batch = self.collate(samples)
        return batch if get_worker_info() is None else self._sent(batch)

    def _sent(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return InPipe(value) if value.nbytes <= SMALL or not self._is_shared(value) else value
        if isinstance(value, (list, tuple)):
            parts = [self._sent(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value

    def _is_shared(self, tensor: Tensor) -> bool:
        """Whether a tensor is in shared memory now, and its file can be sent."""
        try:
            spare: list[int] = []
            try:
                while len(spare) < SPARE:
                    spare.append(os.open(os.devnull, os.O_RDONLY))
            finally:
                for file in spare:
                    os.close(file)
            tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            worker = get_worker_info()
            if not self._told and worker is not None and not worker.id:
                reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rpartition(": ")[2]
                logger.warning("no room in shared memory (%s): batches take a slower way; more room: %s", reason, ROOM)
            self._told = True
            return False
        return True


class InPipe:
    """A tensor that is sent as bytes, and arrives as a tensor with the same strides.

    Args:
        tensor: on the CPU, of a type that numpy knows.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Callable, tuple[np.ndarray, list[int]]]:
        order = sorted(range(self.tensor.dim()), key=self.tensor.stride, reverse=True)
        places = sorted(range(len(order)), key=order.__getitem__)
        return _arrived, (self.tensor.permute(order).contiguous().numpy(), places)


def _arrived(array: np.ndarray, places: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(places)


def raise_file_limit() -> None:
    """Let this process and its loaders open as many files as the system allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:  # macOS allows less than it says
        logger.info("the limit of open files stays at %d: %s", soft, error)


def fault_of_loaders(error: BaseException) -> InputError | None:
    """What the end of a loader process, or too few files, means; None for any other error."""
    text = str(error)
    few = "ancillary data" in text or "Too many open files" in text
    if few and isinstance(error, (RuntimeError, OSError)):
        needed = "a higher limit (ulimit -n 65536), fewer loader.workers, or loader.workers=0"
        return InputError("loader processes", found="too many open files", needed=needed)
    ended = _ENDED.search(text) if isinstance(error, RuntimeError) else None
    if ended is None and not _in_receipt(error):
        return None
    name = f"loader process {ended[1].strip()}" if ended else "a loader process"
    signal = (ended[2] or "").strip() if ended else ""
    needed = "memory: fewer loader.workers, a smaller loader.batch_size, loader.reduce=True; or loader.workers=0"
    needed = f"more shared memory: {ROOM}" if signal.startswith("Bus") else needed
    return InputError(name, found=f"killed by the system ({signal})" if signal else "ended suddenly", needed=needed)


def _in_receipt(error: BaseException) -> bool:
    """Whether a connection broke while a tensor was fetched from a loader process, which torch may not know ended."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, (OSError, EOFError)) and any(frame.name == "rebuild_storage_fd" for frame in frames)
