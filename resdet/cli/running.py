"""A tool from its start to its end: the check of the environment, and a user's mistake told in one message."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType


def run(main: Callable[[], None], *, choose_threads: bool = True) -> None:
    """Call a tool; print the message of a user's mistake without a traceback and exit with 1.

    One of several processes tells the others why it ends, and they say so in one line.

    Args:
        main: the tool.
        choose_threads: take the CPUs that are left (:mod:`resdet.cpu.threads`); else torch's own choice, for what is
            measured or runs no net.
    """
    from resdet.cpu import threads

    others = threads.Others()  # watched while torch is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # pages of addresses beside the message of an exception
    if choose_threads:
        threads.wait_passively(others)
    from resdet.cpu.memory import keep_freed_memory
    from resdet.errors import InputError, Stopped

    _print_anything()
    _tell()
    try:
        _check_environment()
        if os.environ.get("RESDET_KEEP_MEMORY", "1") != "0":
            keep_freed_memory()
        if choose_threads:
            threads.choose(others)
        main()
        _exit(0)
    except InputError as error:
        _exit(1, f"error: {error}")
    except Stopped as stop:
        _exit(128 + stop.number, str(stop))
    except BrokenPipeError:  # whoever read the output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that is a file, no permission, a full disk
        _exit(1, _of_loaders(error) or f"error: {error.filename or 'file system'}\n  found:  {error.strerror or error}")
    except KeyboardInterrupt:
        _exit(1, "\nstopped; a training run goes on with --resume")
    except Exception as error:  # a fault of ours, or another process has ended
        if told := _of_loaders(error):
            _exit(1, told)
        distributed = _group()
        if distributed is None:
            raise
        other = distributed.end_of_others(error)
        _exit(1, traceback.format_exc() if other is None else f"error: {other}")


def _of_loaders(error: Exception) -> str | None:
    """The message where loader processes are the cause."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise a second error in the midst of this
    module = sys.modules.get("resdet.datasets.sending")
    fault = None if module is None else module.fault_of_loaders(error)
    return None if fault is None else f"error: {fault}"


def _exit(code: int, message: str = "") -> None:
    """End; as one of several processes, all of a sudden and with a word to the others."""
    if (distributed := _group()) is not None:
        if code:
            print(message, file=sys.stderr)
            reason = message.strip().splitlines()[-1 if message.startswith("Traceback") else 0]
            distributed.tell_end(reason.removeprefix("error: "))
        else:
            distributed.wait()  # the first keeps what the others ask
        distributed.leave(code)
    elif code == 1:
        sys.exit(message)
    elif code:
        print(message, file=sys.stderr)
        sys.exit(code)


def _group() -> ModuleType | None:
    """:mod:`resdet.engine.distributed` where this is one of several processes."""
    module = sys.modules.get("resdet.engine.distributed")
    return module if module is not None and module.world_size() > 1 else None


def _print_anything() -> None:
    """Consoles and files of cp1252 and the like get escapes in place of the names that they cannot hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell() -> None:
    """What the package logs goes to stderr, a line each."""
    logger = logging.getLogger("resdet")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _check_environment() -> None:
    """Packages that import only when they fit the machine; say what to install where they do not."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    _check_import(_try_torch, "torch and torchvision", "pip install --upgrade --force-reinstall torch torchvision")
    _check_import(_try_opencv, "opencv (cv2)", "pip install --force-reinstall --no-deps opencv-python-headless")


def _try_torch() -> None:
    import torch
    import torchvision.ops

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def _try_opencv() -> None:
    import cv2  # noqa: F401


def _check_import(attempt: Callable[[], None], what: str, command: str) -> None:
    from resdet.errors import InputError

    try:
        attempt()
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the installed {what}", found=reason, needed=command) from error
