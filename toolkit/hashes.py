"""Hashes of files, which may be remembered, and of JSON values."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from m2kit.errors import FolderError
from m2kit.outputs import new_file
from m2kit.records import BadRecord, read_json

_CHUNK_BYTES = 1 << 22


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def has_sha256(path: Path, sha256: str, *, trust_seen: bool) -> bool:
    """Whether a file's bytes have a hash. Hashing runs at about 0.5 GB/s.

    Args:
        path: The file.
        sha256: The hash, in hex.
        trust_seen: Skip hashing where this very file (size, mtime, ctime, inode) had the hash
            before, and remember it where it has: in ~/.cache/m2kit, if that can be written.
    """
    if not trust_seen:
        return sha256_of_file(path) == sha256
    try:
        memory = Path.home() / ".cache" / "m2kit" / "hashed.json"
    except RuntimeError:  # a user without a home remembers nothing
        return sha256_of_file(path) == sha256
    key, known = _identity(path), _remembered(memory)
    if known.get(key) == sha256:
        return True
    right = sha256_of_file(path) == sha256
    if right and key == _identity(path):  # not while somebody writes it
        _remember(memory, {**known, key: sha256})
    return right


def canonical_json(value: Any) -> str:
    """A JSON value in canonical form: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256_of_text(text: str) -> str:
    """Hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form."""
    return sha256_of_text(canonical_json(value))


def _identity(path: Path) -> str:
    """What changes with a file's bytes; ctime, as anybody may set mtime back."""
    status = path.stat()
    values = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return ":".join(map(str, (ascii(str(path.resolve())), *values)))


def _remembered(memory: Path) -> dict[str, Any]:
    """What was remembered; nothing where that cannot be read."""
    try:
        seen = read_json(memory)
    except (BadRecord, OSError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _remember(memory: Path, seen: dict[str, Any]) -> None:
    """Keep the newest 100 entries; a cache folder that cannot be written is only slower."""
    with contextlib.suppress(FolderError), new_file(memory) as temporary:
        temporary.write_text(json.dumps(dict(list(seen.items())[-100:])), encoding="utf-8")
