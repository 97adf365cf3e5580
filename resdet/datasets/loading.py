"""Batches for the loaders: which images go together, in which step, on which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from resdet.errors import InputError

T = TypeVar("T")


def collate(samples: Sequence[tuple[Tensor, T]]) -> tuple[list[Tensor], list[T]]:
    """Images and targets as two lists; nothing is stacked, since sizes differ."""
    return [image for image, _ in samples], [target for _, target in samples]


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, seed) keys, each a pure function of (seed, step, rank, world).

    Images are split into landscape and portrait, so that a batch is padded little. Each group is one endless stream,
    permutation after permutation, cut into *total* batches of ``batch_size * world`` images; what an epoch leaves over
    opens the group's next batch. So between any two images of a group the number of visits differs by at most one, and
    nothing is padded or dropped. The groups take turns evenly, in proportion to their sizes. A total batch is split
    contiguously by rank: N processes see, step for step, the images and augmentations of one process with N times the
    batch. Groups too small to fill a batch are not kept apart.

    Args:
        n: number of images.
        batch_size: images per process and step.
        hw: (n, 2) sizes for the aspect groups; None: no groups.
        seed: of the order and of the augmentation.
        rank: this process.
        world: number of processes.
        first_step: where to begin; a resumed run passes the steps it has done and goes on exactly, at no cost.

    Raises:
        InputError: there are no images.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        hw: np.ndarray | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
    ) -> None:
        _check(n, batch_size, rank, world)
        self.batch_size, self.seed, self.rank, self.world, self.first_step = batch_size, seed, rank, world, first_step
        self.total = batch_size * world
        portrait = np.zeros(n, dtype=bool) if hw is None else hw[:, 0] > hw[:, 1]
        self._groups = [np.flatnonzero(~portrait), np.flatnonzero(portrait)]
        if min(map(len, self._groups)) < self.total:
            self._groups = [np.arange(n), np.arange(0)]
        self._n = n
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image is seen about once (rounded up)."""
        return -(-self._n // self.total)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[tuple[int, int]]:
        """This process's keys of one step, in O(1) epochs."""
        # Portrait batches before this step and after it: in proportion, rounded.
        size = len(self._groups[1])
        before, after = ((2 * s * size + self._n) // (2 * self._n) for s in (step, step + 1))
        group, turn = (1, before) if after > before else (0, step - before)
        start = turn * self.total + self.rank * self.batch_size
        indices = self._stream(group, np.arange(start, start + self.batch_size))
        seeds = np.random.default_rng([self.seed, 1, step]).integers(2**31, size=self.total)
        mine = seeds[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        return list(zip(indices, mine.tolist(), strict=True))

    def _stream(self, group: int, positions: np.ndarray) -> list[int]:
        """The images at positions, which go up, of a group's endless stream."""
        members = self._groups[group]
        epochs, places = np.divmod(positions, len(members))
        parts = [members[self._order(group, epoch)[places[epochs == epoch]]] for epoch in np.unique(epochs).tolist()]
        return np.concatenate(parts).tolist()

    def _order(self, group: int, epoch: int) -> np.ndarray:
        if self._orders.get(group, (None,))[0] != epoch:
            order = np.random.default_rng([self.seed, 0, group, epoch]).permutation(len(self._groups[group]))
            self._orders[group] = (epoch, order)
        return self._orders[group][1]


class EvaluationShare(Sampler[list[int]]):
    """Batches of indices that cover every image exactly once over the processes, without padding.

    With sizes given, a batch holds images of one size, since what an image is padded by would show in its detections.
    Processes may get one batch more or less, or none.

    Args:
        n: number of images.
        batch_size: images per batch, at most.
        hw: (n, 2) sizes; None: in file order.
        rank: this process.
        world: number of processes.

    Raises:
        InputError: there are no images.
    """

    def __init__(
        self, n: int, batch_size: int = 1, *, hw: np.ndarray | None = None, rank: int = 0, world: int = 1
    ) -> None:
        _check(n, batch_size, rank, world)
        order = np.arange(n) if hw is None else np.lexsort((hw[:, 1], hw[:, 0]))
        ends = [] if hw is None else np.flatnonzero(np.diff(hw[order], axis=0).any(1)) + 1
        alike = np.split(order, ends)
        batches = [group[start : start + batch_size] for group in alike for start in range(0, len(group), batch_size)]
        self._batches = [batch.tolist() for batch in batches[rank::world]]

    def thinned(self, most: int) -> EvaluationShare:
        """At most so many of its batches, evenly spread, so that images of all sizes are among them."""
        part = copy(self)
        places = np.linspace(0, len(self._batches) - 1, min(most, len(self._batches))).round()
        part._batches = [self._batches[int(place)] for place in places]
        return part

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _check(n: int, batch_size: int, rank: int, world: int) -> None:
    if n < 1:
        raise InputError("data set", found="no images", needed="at least one image")
    if batch_size < 1:
        raise InputError("batch_size", found=batch_size, needed="at least 1")
    if not 0 <= rank < world:
        raise InputError("rank", found=f"{rank} of {world} processes", needed="0 <= rank < world")
