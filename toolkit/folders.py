"""Hashes, archives of arrays and names of outputs."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2kit.errors import FolderError

if TYPE_CHECKING:
    import numpy.typing as npt

_CHUNK_BYTES = 1 << 22
_MOST_PACKED = 100  # bytes of arrays that a byte of an archive may stand for
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
