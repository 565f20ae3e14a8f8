"""Encodes a data set with an engine, once, as a token cache: an AR model is trained from that
without its pictures. Nothing here imports torch.

Crop v of a picture is the one that a training of the same seed sees in epoch v.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from m2kit.cache_file import CacheFile, Making, read_cache_file, write_cache_file
from m2kit.errors import FolderError, InputError
from m2kit.manifest import Source
from m2kit.outputs import check_output, check_output_folder
from m2kit.progress import Begin, silent
from m2kit.records import to_json
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels
from m2kit.token_cache import SUFFIX, cache_files, part_name
from m2kit.token_file import token_file_from_ids
from m2kit.training.datasets.cut import Cut, Readable, cut_pixels
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import Pictures

_ROWS = 16384  # of a file


@dataclass(frozen=True, slots=True)
class Encoded:
    """What was encoded.

    Attributes:
        pictures: To be trained on.
        held_out: To be measured on.
        crops: Of all of them.
        files: How many there are.
        there_before: How many of them an earlier run had left.
        unread: Names of pictures that could not be read, of the files that this run has made; the
            next ones stand in for them.
    """

    pictures: int
    held_out: int
    crops: int
    files: int
    there_before: int
    unread: tuple[str, ...]


class _Half:
    """Pictures that are cut alike."""

    def __init__(self, pictures: Pictures, cut: Cut, crops: int, *, held_out: bool) -> None:
        self.labels, self.groups = pictures.labels, list(pictures.groups)
        self.crops, self.held_out = crops, held_out
        self._pictures, self._readable, self._cut = pictures, Readable(pictures), cut

    def name(self, index: int) -> str:
        """What a picture is called."""
        return self._pictures.name(index)

    def read(self, index: int) -> tuple[int, int, list[npt.NDArray[np.uint8]]]:
        """The index, that of the picture which was read, and its crops, (H, W, 3) uint8 each."""
        picture, chosen = self._readable.read(index)
        random = (self._cut.random(crop, chosen) for crop in range(self.crops))
        return index, chosen, [cut_pixels(picture, self._cut, each) for each in random]


_Part = Sequence[tuple[_Half, range]]  # what a file holds: pictures of the halves


def encode_data(
    engine: Engine,
    source: Source,
    data: DataSet,
    output: Path,
    *,
    crops: int,
    size: int | None = None,
    place: Literal["random", "centre"] = "random",
    flip: bool = False,
    seed: int = 0,
    batch: int | None = None,
    begin: Begin = silent,
) -> Encoded:
    """Write the tokens of a data set's crops.

    Args:
        engine: Encodes; a model in memory, in float32.
        source: Where its model came from.
        data: The data set.
        output: An .npz for all of them, or a folder for files of about 16,000 crops each. There an
            encoding that was stopped is gone on with: each of its files is whole.
        crops: Of each training picture; held-out pictures have one, at the centre.
        size: Height and width of a crop in pixels; None is the pictures' own.
        place: Where they are taken.
        flip: Mirror every second one.
        seed: Of place and flip.
        batch: Images computed at once, at most.
        begin: Shows how far it is.

    Raises:
        InputError: The data set has no pictures or no common size, or the engine cannot take it.
        FolderError: The output cannot be written, or holds token files of another encoding.
    """
    single = output.suffix.lower() == SUFFIX
    if single:
        check_output(output, SUFFIX)
    else:
        check_output_folder(output)
    collection = data.load()
    size = size or collection.size
    if size is None:
        raise InputError(
            f"the pictures of {data.name} are of several sizes; name the one to encode",
            option="--resize",
        )
    cut = Cut((size, size), place, flip, seed=seed)
    halves = (
        _Half(collection.train, cut, crops, held_out=False),
        _Half(collection.held_out, Cut((size, size)), 1, held_out=True),
    )
    parts = [[(half, range(len(half.labels))) for half in halves]] if single else _parts(halves)
    making = Making(
        tokenizer_sha256=source.tokenizer_file[0],
        tokenizer_weights=source.tokenizer_file[1],
        precision=engine.info.precision.compute if engine.info else "float32",
        data=data.title.encode(errors="replace").decode(),  # a path may be no text
        data_sha256=_digest(halves),
        crops=crops,
        place=place,
        flip=flip,
        seed=seed,
        parts=len(parts),
    )
    there = set() if single else _there_before(output, making)
    counts = [sum(half.crops * len(pictures) for half, pictures in part) for part in parts]
    advance, unread = begin("encoding", sum(counts)), set[str]()
    at_once = engine.compute_at_once((size, size), batch)
    with ThreadPoolExecutor() as readers:
        for number, part in enumerate(parts):
            if number in there:
                advance(counts[number])
                continue
            rows = _Rows()
            for half, found in _read_ahead(part, at_once, readers):
                ids = engine.encode(images_from_pixels(np.stack(found.pixels)), batch=batch)
                rows.add(half, found, ids)
                advance(len(ids))
            unread |= rows.unread
            content = CacheFile(
                token_file_from_ids(np.concatenate(rows.ids), engine.spec, (size, size)),
                labels=np.concatenate(rows.labels),
                crops=np.concatenate(rows.crops),
                held_out=np.concatenate(rows.held_out),
                groups=np.array(rows.groups),
                classes=collection.classes,
                making=replace(making, part=number),
            )
            write_cache_file(output if single else output / part_name(number), content)
    return Encoded(
        len(halves[0].labels),
        len(halves[1].labels),
        sum(counts),
        len(parts),
        len(there),
        tuple(sorted(unread)),
    )


def _parts(halves: Sequence[_Half]) -> list[_Part]:
    """What the files of a folder hold."""
    parts: list[_Part] = []
    for half in halves:
        pictures, step = range(len(half.labels)), max(1, _ROWS // half.crops)
        parts += [[(half, pictures[start : start + step])] for start in pictures[::step]]
    return parts


def _digest(halves: Sequence[_Half]) -> str:
    """Of labels and groups."""
    digest = hashlib.sha256()
    for half in halves:
        digest.update(half.labels.astype("<i8").tobytes())
        digest.update("\0".join(half.groups).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _there_before(folder: Path, making: Making) -> set[int]:
    """The parts that an earlier run has left.

    Raises:
        FolderError: The folder holds another encoding's.
    """
    there = set()
    for path in cache_files(folder) if folder.is_dir() else []:
        try:
            found = read_cache_file(path).making
        except InputError as error:
            raise FolderError(f"{error}, in another folder", option="-o") from error
        pairs = zip(to_json(replace(found, part=0)).items(), to_json(making).values(), strict=True)
        other = [f"{name} is {a!s:.60}, not {b!s:.60}" for (name, a), b in pairs if a != b]
        if path.name != part_name(found.part):
            other.append(f"name is not {part_name(found.part)}")
        if other:
            raise FolderError(
                f"{path} is of another encoding: its {other[0]}; remove it, or choose another "
                "folder",
                option="-o",
            )
        there.add(found.part)
    return there


@dataclass(frozen=True, slots=True)
class _Read:
    """Some pictures: their indices, those of the ones that were read, and all crops of these."""

    indices: list[int]
    chosen: list[int]
    pixels: list[npt.NDArray[np.uint8]]


def _read_ahead(
    part: _Part, at_once: int, readers: ThreadPoolExecutor
) -> Iterator[tuple[_Half, _Read]]:
    """About so many crops, one lot after the other; while one is used, the next is read."""
    lots = [
        (half, pictures[start : start + step])
        for half, pictures in part
        for step in [max(1, at_once // half.crops)]
        for start in range(0, len(pictures), step)
    ]
    begun = [readers.map(lots[0][0].read, lots[0][1])]
    for number, (half, _) in enumerate(lots):
        for next_half, pictures in lots[number + 1 : number + 2]:
            begun.append(readers.map(next_half.read, pictures))
        indices, chosen, crops = zip(*begun.pop(0), strict=True)
        yield half, _Read(list(indices), list(chosen), [c for each in crops for c in each])


class _Rows:
    """The rows of a file, as they come.

    Attributes:
        ids: (b, *grid, K) int64 each.
        labels: (b) int64 each.
        crops: Likewise.
        held_out: (b) bool each.
        groups: Of each row.
        unread: Pictures that could not be read.
    """

    def __init__(self) -> None:
        self.ids: list[npt.NDArray[np.int64]] = []
        self.labels: list[npt.NDArray[np.int64]] = []
        self.crops: list[npt.NDArray[np.int64]] = []
        self.held_out: list[npt.NDArray[np.bool_]] = []
        self.groups: list[str] = []
        self.unread: set[str] = set()

    def add(self, half: _Half, found: _Read, ids: npt.NDArray[np.int64]) -> None:
        """Add all crops of some pictures."""
        pictures = np.array(found.chosen)
        self.ids.append(ids)
        self.labels.append(half.labels[np.repeat(pictures, half.crops)])
        self.crops.append(np.tile(np.arange(half.crops), len(pictures)))
        self.held_out.append(np.full(len(ids), half.held_out))
        for index, chosen in zip(found.indices, found.chosen, strict=True):
            self.groups += [half.groups[chosen]] * half.crops
            if chosen != index:
                self.unread.add(half.name(index))
