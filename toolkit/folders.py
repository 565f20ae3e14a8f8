"""Writing and hashing the folders m2kit leaves on disk.

A folder appears whole or not at all: it is written beside its destination under a temporary name,
flushed, and renamed when complete. What a killed run leaves behind has a name that nothing opens,
and the next run to the same destination removes it.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2kit.errors import FolderError

if TYPE_CHECKING:
    import numpy.typing as npt

_CHUNK_BYTES = 1 << 22
_MOST_PACKED = 100  # bytes of arrays that a byte of an archive may stand for
_HALF_WRITTEN = re.compile(r"\..+\.tmp-(\d+)\.\w+")  # new_file's names until a file is whole
_ARCHIVE_ERRORS = (  # all that zipfile and numpy were seen to raise on damaged archives
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, SyntaxError, MemoryError,
    NotImplementedError, OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def new_folder(destination: Path, marker: str) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends without an error.

    Args:
        destination: Where the folder shall be. One that is there already is replaced, but only
            if it holds `marker`: anything else is not ours to delete.
        marker: The manifest's file name, for example "bundle.json".

    Raises:
        FolderError: `destination` is something else, or its parent cannot be written.
    """
    destination = Path(os.path.abspath(destination))
    if os.path.lexists(destination) and not (destination / marker).is_file():
        raise FolderError(
            f"{destination} exists and holds no {marker}, so it will not be replaced; "
            "choose another output with -o"
        )
    temporary = destination.parent / f".{destination.name}.tmp-{os.getpid()}"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        temporary.mkdir()
        yield temporary
        _flush(temporary)
        _replace(temporary, destination)
    except OSError as error:
        raise FolderError(
            f"cannot write {destination}: {error.strerror or error}; nothing was left behind; "
            "free some space or choose another output with -o"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, destination: Path) -> None:
    """Rename into place; a folder being replaced is moved aside first and restored on failure."""
    if not destination.exists():
        temporary.rename(destination)
        return
    old = temporary.with_name(temporary.name + "-old")
    destination.rename(old)
    try:
        temporary.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(destination: Path) -> None:
    """Remove what runs that no longer live left beside `destination`."""
    prefix = f".{destination.name}.tmp-"
    for path in destination.parent.glob(f"{glob.escape(prefix)}*"):
        pid, _, old = path.name[len(prefix) :].partition("-")
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if old and not destination.exists():
            path.rename(destination)  # killed between the two renames: give the old one back
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder and its files, to the disk."""
    for item in [*(path.iterdir() if path.is_dir() else ()), path]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _remove_half_written(folder: Path) -> None:
    """Remove what dead runs left of `new_file`; once, since a folder may hold many files."""
    for path in folder.iterdir():
        found = _HALF_WRITTEN.fullmatch(path.name)
        if found and not _alive(int(found.group(1))):
            path.unlink(missing_ok=True)  # another run may be cleaning too


@contextlib.contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """A temporary path that becomes the file `destination` when the block ends without an error.

    Raises:
        FolderError: It cannot be written there.
    """
    destination = Path(os.path.abspath(destination))
    temporary = destination.parent / f".{destination.stem}.tmp-{os.getpid()}{destination.suffix}"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_half_written(destination.parent)
        yield temporary
        _flush(temporary)
        temporary.replace(destination)
    except OSError as error:
        raise FolderError(
            f"cannot write {destination}: {error.strerror or error}; choose another output"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class DamagedArchive(Exception):
    """What `read_npz` raises for a file that is no intact archive of plain arrays."""


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file, never unpickled.

    Raises:
        DamagedArchive: Not an intact .npz of plain arrays.
        FileNotFoundError: There is no such file.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MOST_PACKED * path.stat().st_size + _CHUNK_BYTES or archive.testzip():
                raise DamagedArchive(path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise
    except _ARCHIVE_ERRORS as error:
        raise DamagedArchive(path) from error


def check_output(path: Path, suffix: str) -> None:
    """Refuse an output file before any work is spent on it.

    Raises:
        FolderError: The wrong kind of name, a folder, or nothing that can be written.
    """
    if path.suffix.lower() != suffix:
        raise FolderError(f"{path}: expected an output name ending in {suffix}; choose another")
    if path.is_dir():
        raise FolderError(f"{path} is a folder, expected a file name; choose another")
    parent = next(p for p in Path(os.path.abspath(path)).parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FolderError(f"cannot write {path}: {parent} is not a writable folder")
