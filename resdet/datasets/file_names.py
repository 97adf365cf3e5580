"""Names of files as two arrays: a list of texts would be copied into every process that reads it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np

HOW = sys.getfilesystemencodeerrors()
"""What becomes of bytes in names of files that are no text."""


class FileNames(Sequence[str]):
    """n strings in one byte array and its offsets, so that worker processes share their pages.

    Args:
        names: the strings, copied.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", HOW) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of(cls, text: np.ndarray, offsets: np.ndarray) -> FileNames:
        """Names from what :attr:`arrays` gave."""
        names = cls(())
        names._bytes, names._offsets = text, offsets
        return names

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``text``, all of it as uint8; ``offsets`` (n + 1,) int64 in it."""
        return {"text": self._bytes, "offsets": self._offsets}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[str]:
        text, offsets = self._bytes.tobytes(), self._offsets.tolist()
        return (text[start:end].decode("utf-8", HOW) for start, end in itertools.pairwise(offsets))

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes().decode("utf-8", HOW)
