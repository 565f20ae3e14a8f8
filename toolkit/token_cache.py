"""Token caches: the tokens of a whole data set, from which an AR model is trained without pictures.
A cache is a file of cache_file.py, or a folder of them; its ids stay on the disk.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.cache_file import (
    ENCODE_AGAIN,
    IDS_MEMBER,
    CacheFile,
    Making,
    place_of_ids,
    read_cache_file,
)
from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.records import to_json
from m2kit.token_file import TokenFile

SUFFIX = ".npz"


@dataclass(frozen=True, slots=True)
class CachedPictures:
    """The pictures of one half of a cache.

    Attributes:
        files: What the ids are in.
        dtypes: Of each file's ids.
        starts: Of each file: where its ids begin, in bytes.
        places: (n, 2) int64: the file of each picture, and the row of its first crop there.
        labels: (n) int64.
        groups: (n) names.
        shape: Of a row: (*grid, K).
    """

    files: Sequence[Path]
    dtypes: Sequence[np.dtype[Any]]
    starts: Sequence[int]
    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    groups: Sequence[str]
    shape: tuple[int, ...]

    def read(self, index: int, crop: int) -> npt.NDArray[np.int64]:
        """Ids (*grid, K) of a crop, read from the disk.

        Raises:
            InputError: The file was changed since the cache was opened.
        """
        number, row = self.places[index].tolist()
        path, dtype, count = self.files[number], self.dtypes[number], int(np.prod(self.shape))
        place = self.starts[number] + (row + crop) * count * dtype.itemsize
        changed = f"{path} was changed while it was read"
        try:
            ids = np.fromfile(path, dtype, count, offset=place)
        except OSError as error:
            raise InputError(f"{changed}: {error.strerror or error}; {ENCODE_AGAIN}") from error
        if len(ids) != count:
            raise InputError(f"{changed}; {ENCODE_AGAIN}")
        return ids.reshape(self.shape).astype(np.int64)


@dataclass(frozen=True, slots=True)
class TokenCache:
    """A cache, opened and checked; its ids stay on the disk.

    Attributes:
        train: Pictures to be trained on, of `making.crops` crops each.
        held_out: Pictures to be measured on, of one crop each.
        classes: Names, by label.
        tokens: What all rows have in common, without ids.
        making: How it was made.
    """

    train: CachedPictures
    held_out: CachedPictures
    classes: tuple[str, ...]
    tokens: TokenFile
    making: Making


def is_token_cache(path: Path) -> bool:
    """Whether a path is a token file, or a folder of which all that is not hidden is .npz."""
    if path.is_dir():
        seen = [item for item in path.iterdir() if not item.name.startswith(".")]
        return bool(seen) and all(item.suffix == SUFFIX and not item.is_dir() for item in seen)
    is_file = path.is_file() and path.suffix.lower() == SUFFIX  # a pipe would never open
    if not is_file or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return IDS_MEMBER in archive.namelist()
    except (OSError, zipfile.BadZipFile):  # the data sets' reader says what is wrong with it
        return False


def cache_files(path: Path) -> list[Path]:
    """The files of a cache, by name."""
    return sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]


def open_cache(path: Path, begin: Begin = silent) -> TokenCache:
    """A cache, with every file of it checked; one file at a time is in memory.

    Args:
        path: A token file, or a folder of them.
        begin: Shows how far it is.

    Raises:
        InputError: A file is damaged, missing, or of another encoding.
    """
    paths = cache_files(path)
    if not paths:
        raise InputError(f"{path}: expected token files, found none; {ENCODE_AGAIN}")
    first: CacheFile | None = None
    stored: list[tuple[np.dtype[Any], int]] = []
    rows: tuple[list[_Rows], list[_Rows]] = [], []
    parts: dict[int, Path] = {}
    advance = begin("checking tokens", len(paths))
    for number, name in enumerate(paths):
        content = read_cache_file(name)
        first = first or content
        _check_alike(paths[0], first, name, content)
        twin = parts.setdefault(content.making.part, name)
        if twin != name:
            raise InputError(f"{name} and {twin} hold the same pictures; remove one of them")
        stored.append(place_of_ids(name))
        for half, held_out in zip(rows, (False, True), strict=True):
            chosen = np.flatnonzero((content.held_out == held_out) & (content.crops == 0))
            groups = content.groups[chosen].tolist()
            half.append(_Rows(number, chosen, content.labels[chosen], groups))
        advance(1)
    assert first is not None
    missing = set(range(first.making.parts)) - set(parts)
    if missing:
        raise InputError(
            f"{path}: expected {first.making.parts} token files, found {len(paths)}; "
            f"{part_name(min(missing))} is missing: give the `m2kit encode` that made them again"
        )
    shape = first.tokens.ids.shape[1:]
    train, held_out_pictures = (_pictures(paths, stored, half, shape) for half in rows)
    counts = len(train.labels), len(held_out_pictures.labels)
    if 0 in counts:
        raise InputError(
            f"{path} has {counts[0]} pictures to train on and {counts[1]} held out; it needs "
            f"both: {ENCODE_AGAIN}"
        )
    common = replace(first.tokens, ids=first.tokens.ids[:0])
    return TokenCache(train, held_out_pictures, first.classes, common, first.making)


def part_name(part: int) -> str:
    """Name of a file in a folder."""
    return f"tokens-{part:05d}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class _Rows:
    """First crops of a half of a file."""

    file: int
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    groups: list[str]


def _pictures(
    paths: list[Path],
    stored: list[tuple[np.dtype[Any], int]],
    rows: list[_Rows],
    shape: tuple[int, ...],
) -> CachedPictures:
    return CachedPictures(
        files=paths,
        dtypes=[dtype for dtype, _ in stored],
        starts=[start for _, start in stored],
        places=np.concatenate([np.stack([np.full_like(r.rows, r.file), r.rows], 1) for r in rows]),
        labels=np.concatenate([r.labels for r in rows]),
        groups=[group for r in rows for group in r.groups],
        shape=shape,
    )


def _check_alike(first_path: Path, first: CacheFile, path: Path, content: CacheFile) -> None:
    """Refuse files of two encodings."""
    pairs = {
        name: (getattr(first.tokens, name), getattr(content.tokens, name))
        for name in ("vocabularies", "bit_order", "spec_sha256", "image_size")
    }
    pairs["ids"] = first.tokens.ids.shape[1:], content.tokens.ids.shape[1:]
    pairs["classes"] = first.classes, content.classes
    one, two = (to_json(replace(each.making, part=0)) for each in (first, content))
    pairs |= {f"making.{name}": (one[name], two[name]) for name in one}
    for name, (a, b) in pairs.items():
        if a != b:
            raise InputError(
                f"{path} and {first_path} are of two encodings: their {name} is {b!s:.60} and "
                f"{a!s:.60}; keep the files of one of them"
            )
