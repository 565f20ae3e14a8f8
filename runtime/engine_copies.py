"""An engine on a machine that may lack it: used in place where its path holds it, else copied once
into this user's cache, in a folder named by the hash of its files, and again where a copy is
damaged. How the bytes come here is the caller's.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2kit.errors import FolderError
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.manifest import ENGINE, Manifest, manifest_name
from m2kit.manifest_file import read_manifest
from m2kit.outputs import new_folder

_CHUNK_BYTES = 64 << 20
Read = Callable[[str, int, int], bytes]  # a file's name in the engine, offset and most bytes


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Where an engine is, and what it is.

    Attributes:
        path: Its folder, absolute, on the machine that has it.
        sizes: The bytes of each of its files but the manifest, by name.
        sha256: Of the hashes of these files.
    """

    path: str
    sizes: dict[str, int]
    sha256: str


def source_of(path: Path, manifest: Manifest) -> EngineSource:
    """What another machine needs to know of an engine that is here."""
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    return EngineSource(str(path.resolve()), sizes, _hash_of(manifest))


def engine_here(source: EngineSource, read: Read, cache: Path | None = None) -> Path:
    """The folder of an engine on this machine, copied if it must be; one process copies, and others
    of this machine wait for it.

    Args:
        source: The engine.
        read: Reads of its files where they are.
        cache: Where a copy is kept; by default ~/.cache/m2kit/engines.

    Raises:
        FolderError: A copy cannot be written.
    """
    place = Path(source.path)
    if _holds(place, source):  # whoever opens it compares its bytes
        return place
    copy = (cache or _cache()) / f"{source.sha256}.engine"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        lock = copy.with_suffix(".lock").open("w")
    except OSError as error:
        raise FolderError(f"cannot keep a copy of the engine: {copy.parent}: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or this process dies
        if not (_holds(copy, source) and _is_whole(copy)):
            _copy(source, read, copy)
    return copy


def _copy(source: EngineSource, read: Read, destination: Path) -> None:
    with new_folder(destination, lambda found: None) as temporary:  # what is damaged is replaced
        for name in (*source.sizes, manifest_name(ENGINE)):
            offset = 0
            with (temporary / name).open("wb") as file:
                while chunk := read(name, offset, _CHUNK_BYTES):
                    file.write(chunk)
                    offset += len(chunk)


def _holds(folder: Path, source: EngineSource) -> bool:
    """Whether a folder looks like the engine: its files' names, hashes as listed, and sizes."""
    try:
        same = _hash_of(read_manifest(folder, ENGINE)) == source.sha256
        return same and all(
            (folder / name).stat().st_size == size for name, size in source.sizes.items()
        )
    except (FolderError, OSError):
        return False


def _is_whole(folder: Path) -> bool:
    """Whether every file has the hash that the manifest lists."""
    files = read_manifest(folder, ENGINE).files
    return all(sha256_of_file(folder / name) == entry.sha256 for name, entry in files.items())


def _hash_of(manifest: Manifest) -> str:
    return sha256_of_json({name: entry.sha256 for name, entry in manifest.files.items()})


def _cache() -> Path:
    try:
        return Path.home() / ".cache" / "m2kit" / "engines"
    except RuntimeError as error:
        raise FolderError("no home folder to keep a copy of the engine in; set HOME") from error
