"""The first stage's proposals for the training images of the second (appendix C), computed once and kept in files.

Each file holds those of :data:`SHARD` images. The folder's name tells the net, the settings and the images that they
are of, so proposals of others are never taken for them, and what a stopped run has written is not computed again.
Folders of earlier first stages stay beside the checkpoint until someone deletes them, which does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from resdet.backbones.published import file_hash
from resdet.cpu.folding import fold_batchnorm
from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import collate
from resdet.datasets.sending import Sending
from resdet.engine import distributed
from resdet.engine.optim import autocast
from resdet.engine.progress import shown
from resdet.errors import InputError
from resdet.files import replacing
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.settings import LocalizationTest
from resdet.localization.system import propose

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

SHARD = 256
"""Images of a file: 0.8 MB of 200 proposals each, and so much work at most that a stop loses."""


class StoredProposals(Sequence[np.ndarray]):
    """(P, 4) float32 xyxy of each image, frame: original; mapped files, whose pages processes share.

    All are checked at once. A process that it is sent to, as a loader's worker, is sent the paths alone and maps each
    file when it first needs it.

    Args:
        paths: the files in order.
        images: number of them in all.

    Raises:
        InputError: a file is damaged.
    """

    def __init__(self, paths: Sequence[Path], images: int) -> None:
        self._paths, self._images, self._mapped = list(paths), images, {}
        for number in range(len(paths)):
            self._shard(number)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": {}}  # a map would be sent as all its content

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._images:
            raise IndexError(index)
        return self._shard(index // SHARD)[index % SHARD]

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._mapped:
            path, rows = self._paths[number], min(SHARD, self._images - number * SHARD)
            try:
                shard = np.load(path, mmap_mode="r", allow_pickle=False)
                found = None if shard.ndim == 3 and shard.shape[::2] == (rows, 4) else f"an array {shard.shape}"
            except (ValueError, OSError, EOFError) as error:
                found = f"{type(error).__name__}: {error}"
            if found:
                raise InputError(path, found=found, needed=f"the proposals of {rows} images; delete the file")
            self._mapped[number] = shard
        return self._mapped[number]


def training_proposals(config: ExperimentConfig, net: PerClassLocalizer, data: Annotations) -> StoredProposals:
    """The proposals for the class of each image, from the files where they are; each process computes its share.

    Args:
        config: of a second stage; section ``test`` says how the first one looks.
        net: the first stage, of the checkpoint ``regions.first``.
        data: the training images.

    Raises:
        InputError: a file is damaged or cannot be written.
    """
    settings, first = config.test, Path(config.regions.first)
    folder = first.parent / f"proposals_{_identity(first, settings, data)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, found=error.strerror or error, needed="a folder that can be written") from error
    paths = [folder / f"{number:06d}.npy" for number in range(-(-len(data) // SHARD))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    mine = [number for number in missing if number % distributed.world_size() == distributed.rank()]
    if mine:
        net = fold_batchnorm(net).to(distributed.device(), memory_format=torch.channels_last).eval()
        for number, boxes in _computed(config, net, data, mine):
            _write(paths[number], boxes)
    distributed.wait()
    return StoredProposals(paths, len(data))


@torch.no_grad()
def _computed(
    config: ExperimentConfig, net: PerClassLocalizer, data: Annotations, shards: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and (n, P, 4) boxes of each shard."""
    loader = config.loader
    batches = [
        list(range(start, min(start + loader.test_batch_size, end)))
        for shard in shards
        for end in [min((shard + 1) * SHARD, len(data))]
        for start in range(shard * SHARD, end, loader.test_batch_size)
    ]
    loaded = DataLoader(
        DetectionDataset(data), batch_sampler=batches, num_workers=loader.workers, collate_fn=Sending(collate)
    )
    rows: list[np.ndarray] = []
    for keys, (images, targets) in zip(batches, shown(loaded, len(batches), "proposing regions"), strict=True):
        classes = [target.labels[~target.ignore][:1] for target in targets]
        with autocast(config.run.amp):
            found = propose(images, classes=classes, first=[net], settings=config.test)
        rows += [of_image.boxes[0].float().cpu().numpy() for of_image in found]
        shard, last = keys[0] // SHARD, keys[-1] + 1
        if last % SHARD == 0 or last == len(data):
            stacked = np.zeros((len(rows), max(map(len, rows)), 4), np.float32)  # a small image has fewer
            for place, boxes in zip(stacked, rows, strict=True):
                place[: len(boxes)] = boxes
            yield shard, stacked
            rows = []


def _write(path: Path, boxes: np.ndarray) -> None:
    """Write beside the file, then move into its place."""
    try:
        with replacing(path) as file:
            np.save(file, boxes)
    except OSError as error:
        raise InputError(path, found=error.strerror or error, needed="space on the disk") from error


def _identity(checkpoint: Path, settings: LocalizationTest, data: Annotations) -> str:
    """What proposals depend on, as 16 digits."""
    digest = hashlib.sha256(file_hash(checkpoint).encode())
    digest.update(repr((settings.view, settings.sides, settings.proposals, settings.nms_iou)).encode())
    digest.update("\n".join([data.image_root, *data.files]).encode(errors="surrogateescape"))
    for array in (data.first, data.labels, data.ignore, data.boxes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
