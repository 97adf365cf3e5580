"""A tool from its start to its end: the check of the environment, and a user's mistake told in one message."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
    """Call a tool; print the message of a user's mistake without a traceback and exit with 1."""
    from resdet.cpu.memory import keep_freed_memory
    from resdet.errors import InputError, Stopped

    _tell()
    try:
        _check_environment()
        if os.environ.get("RESDET_KEEP_MEMORY", "1") != "0":
            keep_freed_memory()
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except BrokenPipeError:  # whoever read the output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that is a file, no permission, a full disk
        sys.exit(f"error: {error.filename or 'file system'}\n  found:  {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; a training run goes on with --resume")


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
