"""Files: written whole or not at all, hashed, and where what is computed once is kept between runs."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` to write into, which takes its place at the end; after an error the old one stays.

    The folder is made where it is missing. A link stays, and what it points to is replaced; a device or a pipe, such as
    ``/dev/null``, is written into.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "wb") as file:
            yield file
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_strays(folder: str | Path) -> None:
    """Remove what :func:`replacing` could not, in a folder, since its process was killed."""
    for path in Path(folder).glob(".*.*.*"):
        number = path.name.rpartition(".")[2]
        if number.isdigit() and path.is_file() and _has_ended(int(number)):
            path.unlink(missing_ok=True)


def _has_ended(process: int) -> bool:
    if fcntl is None:  # Windows has no signal 0, which asks only
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # somebody else's; not the number of a process
        return False
    return False


def damaged_part(path: str | Path) -> str | None:
    """The part of a zip (a ``.pth`` is one) whose checksum is wrong; None if all are right, or it is no zip.

    torch looks at no checksum, so that weights with a flipped bit load without a word.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except zipfile.BadZipFile:
        return None
    except (NotImplementedError, RuntimeError, EOFError, zlib.error):  # a flag of it says: encrypted, another method
        return "its directory"


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold a folder against a second process, by a lock that a dead process does not keep.

    Raises:
        BlockingIOError: another process holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:  # file systems that lock no folders
            logger.info("%s is not locked: %s", folder, error)
        yield
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where decoded images and parsed annotations are kept: ``RESDET_CACHE``, else ``resdet`` in the user's cache."""
    if own := os.environ.get("RESDET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resdet"


def kept_path(source: str | Path, what: str) -> Path:
    """The place in the cache of what was made of a file or folder."""
    place = os.path.abspath(source)
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return cache_folder() / f"{Path(place).name}.{digest}.{what}.npz"


def keep_arrays(path: Path, fingerprint: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays for :func:`kept_arrays`; where nothing can be written, say so and go on."""
    try:
        with replacing(path) as file:
            contents: dict[str, Any] = {**arrays, "fingerprint": np.array(fingerprint)}
            np.savez(file, **contents)
        remove_strays(path.parent)
    except OSError as error:
        logger.info("%s is not kept: %s", path, error)


def kept_arrays(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Arrays that were kept with the same fingerprint; None where there are none, or others, or damaged ones."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != fingerprint:
                return None
            return {name: kept[name] for name in kept.files if name != "fingerprint"}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
