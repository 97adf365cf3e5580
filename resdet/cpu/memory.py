"""Freed memory kept for the next map instead of handed back to the kernel and asked for again.

Every large map is otherwise mapped anew and each of its pages faulted in at the first touch: half a million faults for
one image of 800x1066, a quarter of its time. GNU's C library has the switches; a process that other code shares should
decide for itself, so it is the tools that call this, and never an import.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and keep what is freed; for the whole process, and what it forks from now on.

    The process then holds about its peak until it ends.

    Returns:
        Whether it took effect: False where the C library is another than GNU's, or an old one.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  the name alone tells
    except (AttributeError, OSError, TypeError):
        return False
    if not libc.mallopt(M_MMAP_THRESHOLD, BYTES):  # before 2.35 the bound is 32 MiB; without it the rest does harm
        return False
    return all([libc.mallopt(*setting) for setting in ((M_TRIM_THRESHOLD, 2 * BYTES - 1), (M_TOP_PAD, BYTES // 4))])


def give_back() -> None:
    """Hand freed memory back to the kernel once, so that what is used next can be counted; GNU's C library alone can.

    Elsewhere nothing happens.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
