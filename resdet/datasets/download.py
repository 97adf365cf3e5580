"""Published data sets from where they are published, into the folders that configs look in.

Here and not in a wing, because the folders are those of the readers beside it. urllib, because torchvision's own
downloads start from nothing after a break. An archive lies in ``downloads`` until it is unpacked: what a call leaves
there, the next one goes on with.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, NamedTuple

from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.voc import DATASET_YEAR_DICT

from resdet.errors import InputError
from resdet.files import held

Watch = Callable[[str, int, int], None]
"""Told what is done, and bytes of it so far and in all."""
BLOCK = 2**20
TRIES = 5
"""Attempts in a row that bring nothing, before a broken download is given up."""
PAUSE = 2.0
"""Seconds before the second attempt, twice as many before the next, and so on."""
PATIENCE = 30.0
"""Seconds that a server may be silent."""
KEPT = "downloads"
"""Folder of archives that are not unpacked yet."""


class Part(NamedTuple):
    """An archive of a data set."""

    url: str
    size: int
    """Bytes, as its server tells."""
    md5: str | None
    """None: nobody has published it; the checksums inside the archive are looked at."""
    sign: str
    """A file that is there once it is unpacked, from the root on."""
    into: str | None = ""
    """Where it is unpacked; None: it is read as it is."""
    unpacked: int = 0
    """Bytes of what is in it; 0: as many as the archive has."""

    @property
    def name(self) -> str:
        """Of the file."""
        return PurePosixPath(self.url).name

    @property
    def room(self) -> int:
        """Bytes that it needs beside the archive."""
        return 0 if self.into is None else self.unpacked or self.size


def _voc(year: str, size: int, sign: str) -> Part:
    facts = DATASET_YEAR_DICT[year]
    return Part(facts["url"], size, facts["md5"], f"{facts['base_dir']}/ImageSets/Main/{sign}.txt")


def _coco(path: str, size: int, sign: str, unpacked: int = 0) -> Part:
    # Plain HTTP, as https://cocodataset.org/#download has it: the certificate of the server is for another name.
    return Part(f"http://images.cocodataset.org/{path}", size, None, f"coco/{sign}", "coco", unpacked)


SETS = MappingProxyType(
    {
        "voc2007": (_voc("2007", 460_032_000, "trainval"), _voc("2007-test", 451_020_800, "test")),
        "voc2012": (_voc("2012", 1_999_639_040, "trainval"),),
        "coco2017": (
            _coco(
                "annotations/annotations_trainval2017.zip",
                252_907_541,
                "annotations/instances_val2017.json",
                unpacked=830_000_000,
            ),
            _coco("zips/val2017.zip", 815_585_330, "val2017/000000000139.jpg"),
            _coco("zips/train2017.zip", 19_336_861_798, "train2017/000000000009.jpg"),
        ),
        "cifar10": (Part(CIFAR10.url, 170_498_071, CIFAR10.tgz_md5, CIFAR10.filename, None),),
        "cifar100": (Part(CIFAR100.url, 169_001_437, CIFAR100.tgz_md5, CIFAR100.filename, None),),
    }
)
"""By the names that ``tools/download.py`` takes. MD5s are torchvision's; COCO's publishers give none."""


def download(parts: Sequence[Part], root: str | Path, *, watch: Watch, say: Callable[[str], None] = print) -> None:
    """Fetch, check and unpack what is not there yet.

    Args:
        parts: of one data set or more.
        root: folder of all data sets.
        watch: told of the progress.
        say: takes lines for the person who waits.

    Raises:
        InputError: another call is at it; too little room; no server, or another file on it; a damaged archive.
    """
    kept = Path(root) / KEPT
    try:
        with held(kept):
            _download(parts, Path(root), watch, say)
    except BlockingIOError as error:
        raise InputError(kept, found="another download into it", needed="one at a time, or another --root") from error
    if not any(kept.iterdir()):
        kept.rmdir()


def _download(parts: Sequence[Part], root: Path, watch: Watch, say: Callable[[str], None]) -> None:
    missing = [part for part in parts if not is_there(part, root)]
    for part in parts:
        state = _state(part, root) if part in missing else "there already, passed over"
        say(f"{part.name:<32} {in_words(part.size):>9}  {state}")
    if missing:
        say("{} needed, {} free".format(*map(in_words, check_room(missing, root))))
    for part in missing:
        archive = fetch(part, root / KEPT, watch, say)
        if part.into is None:
            os.replace(archive, root / part.sign)
            say(f"-> {root / part.sign}")
            continue
        try:
            unpack(archive, root / part.into, watch)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zlib.error) as error:
            (root / part.sign).unlink(missing_ok=True)  # what is unpacked of it does not count
            archive.unlink()
            needed = "the same command again: it was removed and is fetched anew"
            raise InputError(archive, found=f"damaged: {error}", needed=needed) from error
        if not (root / part.sign).is_file():
            raise InputError(archive, found=f"no {part.sign} in it", needed="the published archive")
        archive.unlink()  # from now on it counts as unpacked
        say(f"-> {root / part.into}, from {part.name}")


def is_there(part: Part, root: Path) -> bool:
    """Whether a part has been unpacked: what it brings is there, and no archive that waits."""
    waits = [root / KEPT / name for name in (part.name, f"{part.name}.part")]
    return (root / part.sign).is_file() and not any(path.exists() for path in waits)


def check_room(parts: Sequence[Part], root: Path) -> tuple[int, int]:
    """Bytes that are needed, and bytes that are free.

    Archives are unpacked one by one, so that only one lies beside what has been in the others.

    Raises:
        InputError: there is too little.
    """
    needed, unpacked = 0, 0
    for part in parts:
        lying = sum(_size(root / KEPT / name) for name in (part.name, f"{part.name}.part"))
        needed = max(needed, unpacked + part.size - lying + part.room)
        unpacked += part.room or part.size
    free = shutil.disk_usage(root).free
    if needed > free:
        asked = f"{in_words(needed)}, or another --root"
        raise InputError(f"folder {root}", found=f"{in_words(free)} free", needed=asked)
    return needed, free


def fetch(part: Part, folder: Path, watch: Watch, say: Callable[[str], None]) -> Path:
    """The checked archive; a broken download goes on where it broke, in this call and in the next.

    Raises:
        InputError: the server does not answer, or with another file.
    """
    archive, partial = folder / part.name, folder / f"{part.name}.part"
    if not archive.exists():
        failed = 0
        while (before := _size(partial)) != part.size:
            try:
                _receive(part, partial, watch, say)
                reason = "the connection ended"
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"HTTP {error.code} {error.reason}"
                if error.code == 416:  # what lies here is longer than what it has
                    partial.unlink(missing_ok=True)
                elif error.code != 429 and error.code < 500:  # it will not change its mind
                    needed = "a server that has it; or the file by hand (data/README.md)"
                    raise InputError(part.url, found=reason, needed=needed) from error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename):
                    raise  # of this machine
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            now = _size(partial)
            failed = 0 if now > before else failed + 1
            if failed >= TRIES:
                at = f"{in_words(now)} of {in_words(part.size)}"
                needed = "a network; the same command again goes on from there"
                raise InputError(part.url, found=f"{reason}, {TRIES} times at {at}", needed=needed)
            if now != part.size:
                time.sleep(PAUSE * 2**failed / 2)
        os.replace(partial, archive)
    if part.md5 is not None and (found := _md5(archive, watch)) != part.md5:
        archive.unlink()
        raise InputError(part.url, found=f"a file of MD5 {found}", needed=f"{part.md5}; it was removed: try again")
    return archive


def _receive(part: Part, partial: Path, watch: Watch, say: Callable[[str], None]) -> None:
    """Append what the server sends from the end of the partial file on; all of it where it cannot do that."""
    have = _size(partial)
    headers = {"User-Agent": "resdet", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(part.url, headers=headers), timeout=PATIENCE) as answer:
        resumed = answer.status == 206
        if resumed and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise InputError(part.url, found="another piece than was asked for", needed="a server that knows Range")
        if have and not resumed:
            say(f"{part.name}: its server cannot go on from {in_words(have)}, so it starts anew")
            have = 0
        declared = answer.headers.get("Content-Length", "")
        if declared.isdigit() and have + int(declared) != part.size:
            found = f"a file of {have + int(declared):,} bytes"
            raise InputError(part.url, found=found, needed=f"{part.size:,}, as it was published")
        with open(partial, "ab" if resumed else "wb") as file:
            while have < part.size and (block := answer.read(min(BLOCK, part.size - have))):
                file.write(block)
                have += len(block)
                watch(part.name, have, part.size)


def unpack(archive: Path, folder: Path, watch: Watch) -> None:
    """Write the files of an archive; checksums of a zip are looked at on the way.

    Raises:
        InputError: a member that is no file, or that leads out of the folder.
    """
    total = archive.stat().st_size
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.resolve()
    for name, source, at in _members(archive):
        path = folder / name
        if PurePosixPath(name).is_absolute() or "\\" in name or inside not in path.resolve().parents:
            raise InputError(archive, found=f"{name!r}, which leads out of {folder}", needed="the published archive")
        path.parent.mkdir(parents=True, exist_ok=True)
        with source, open(path, "wb") as file:
            shutil.copyfileobj(source, file, BLOCK)
        watch(f"unpacking {archive.name}", at, total)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes], int]]:
    """Name and content of each file, and how far in the archive it is; folders come with their files."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for member in (each for each in opened.infolist() if not each.is_dir()):
                yield member.filename, opened.open(member), member.header_offset
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            source = opened.extractfile(member) if member.isfile() else None
            if source is not None:
                yield member.name, source, member.offset
            elif not member.isdir():
                found = f"{member.name!r}, which is no file"
                raise InputError(archive, found=found, needed="the published archive")


def _state(part: Part, root: Path) -> str:
    if (root / KEPT / part.name).exists():
        return "is unpacked"
    have = _size(root / KEPT / f"{part.name}.part")
    return f"goes on from {in_words(have)}" if have else part.url


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path, watch: Watch) -> str:
    digest, total, done = hashlib.md5(usedforsecurity=False), path.stat().st_size, 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            watch(f"checking {path.name}", done, total)
    return digest.hexdigest()


def in_words(size: int) -> str:
    """Bytes as people say them."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"
