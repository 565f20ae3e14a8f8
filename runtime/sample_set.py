"""Large sets of drawn images, on any number of machines: what a set is, and its parts on disk.

A set's images stand in the order of class and place in it, and are cut into parts, which do not
depend on how many shards draw them: shard I of N draws parts I, I + N, ... A part is one file,
parts/part-00000.npz, which appears whole or not at all: its pixels and, as JSON, the set and which
part of it this is. So a set that was stopped goes on with what is there, and shards need not know
of one another. A part is a number of whole batches (the last one of all may be short), so that
every image is computed beside the same others, however the set is shared out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import FolderError, InputError
from m2kit.hashes import canonical_json
from m2kit.inputs import open_input
from m2kit.manifest import Name, Sha256
from m2kit.npz_file import DamagedArchive
from m2kit.outputs import new_file
from m2kit.progress import Begin, silent
from m2kit.records import (
    BadRecord,
    Range,
    Text,
    checked_fields,
    json_from_text,
    read_record,
    to_json,
)
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS, draw_numbers, notes_of_drawing
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import Rounding, uint8_from_images
from m2kit.runtime.npz_rows import RowArchive, write_rows
from m2kit.runtime.pictures import MOST_SIDE
from m2kit.sampling import ResolvedSampling, Sampling

PARTS = "parts"  # the folder in a set's
_IMAGES, _SET, _PART = "images", "set", "part"  # arrays of a part's file
_MOST_IMAGES, _LEAST_PARTS = 64, 64  # of a part, of a set; as far as the batch lets them


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """All that the images of a set depend on.

    Attributes:
        software: m2kit's version.
        engine: The model's name; None is a model in memory.
        engine_files_sha256: Of the hashes of its files.
        checkpoint_sha256: Of the checkpoint it was made of.
        sampling: How ids are drawn, and the seed.
        classes: Class ids, ascending.
        per_class: Images of each.
        uint8: What becomes of a value between two whole ones.
        batch: Images drawn at once.
        image_size: (H, W) in pixels.
    """

    software: Text
    engine: Name | None = None
    engine_files_sha256: Sha256 | None = None
    checkpoint_sha256: Sha256 | None = None
    sampling: ResolvedSampling
    classes: Annotated[tuple[Annotated[int, Range(0, 2**31)], ...], Range(1, 2**24)]
    per_class: Annotated[int, Range(1, IMAGES_OF_A_CLASS)]
    uint8: Rounding
    batch: Annotated[int, Range(1, 2**20)]
    image_size: tuple[Annotated[int, Range(1, MOST_SIDE)], Annotated[int, Range(1, MOST_SIDE)]]

    def __post_init__(self) -> None:
        """Refuse what could not be read again, before anything is drawn."""
        checked_fields(self, "", InputError)
        if any(a >= b for a, b in zip(self.classes, self.classes[1:], strict=False)):
            raise InputError("classes must be ascending, each once")

    @property
    def images(self) -> int:
        """How many there are in all."""
        return len(self.classes) * self.per_class

    @property
    def images_of_part(self) -> int:
        """Images of every part but the last one."""
        wanted = min(_MOST_IMAGES, self.images // _LEAST_PARTS)
        return self.batch * max(1, wanted // self.batch)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.images // self.images_of_part)

    def numbers(self, part: int) -> list[int]:
        """class * 2^32 + place in the class, of each image of a part."""
        first = part * self.images_of_part
        places = range(first, min(first + self.images_of_part, self.images))
        return [
            self.classes[row // self.per_class] * IMAGES_OF_A_CLASS + row % self.per_class
            for row in places
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part's file tells of itself.

    Attributes:
        part: Which one, from 0 on.
        shards: Among how many the set was shared out where this was drawn.
        device: What drew it: another one may round otherwise.
    """

    part: Annotated[int, Range(0, 2**62)]
    shards: Annotated[int, Range(1, 2**31)]
    device: Name


@dataclass(frozen=True, slots=True)
class SetFolder:
    """A set, and what a folder has of it.

    Attributes:
        path: The folder; its parts are in `parts` there.
        set: The set.
        parts: By their numbers.
    """

    path: Path
    set: SampleSet
    parts: dict[int, Part]

    @property
    def missing(self) -> list[int]:
        """Parts that it lacks."""
        return [part for part in range(self.set.parts) if part not in self.parts]

    def lacking(self, shard: tuple[int, int]) -> list[int]:
        """Parts that it lacks of shard I of N: of I, I + N, ..."""
        return [part for part in self.missing if part % shard[1] == shard[0]]

    @property
    def shards(self) -> int:
        """Among how many the set was shared out, at most, where it was drawn."""
        return max((part.shards for part in self.parts.values()), default=1)

    def images_of(self, parts: Sequence[int]) -> int:
        """How many images some parts have."""
        last = self.set.parts - 1
        short = self.set.parts * self.set.images_of_part - self.set.images
        return len(parts) * self.set.images_of_part - (short if last in parts else 0)

    def rows(self, part: int, at_once: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Pixels (b, H, W, 3) uint8 of a part that is there, so many images at a time.

        Raises:
            FolderError: It is damaged.
        """
        path = part_path(self.path, part)
        try:
            with open_input(path, "part of a set") as file:
                yield from RowArchive(file).rows(_IMAGES, at_once)
        except DamagedArchive as error:
            raise _damaged(path) from error


def set_of(
    engine: Engine,
    classes: Sequence[int],
    per_class: int,
    sampling: Sampling | None = None,
    *,
    uint8: Rounding = "truncate",
    batch: int | None = None,
) -> SampleSet:
    """The set of so many images of each of some classes.

    Args:
        engine: What draws.
        classes: Class ids.
        per_class: Images of each: 0, 1, ...
        sampling: How to draw; the model's own where it says None.
        uint8: Whether pixels are truncated, as ADM and Open-MAGVIT2 do, or rounded.
        batch: Images at once, at most; by default as many as is good here.

    Raises:
        InputError: A class, number or option out of range.
    """
    notes = notes_of_drawing(engine, sampling)
    engine.check_draw(classes, sampling)
    notes["sampling"] = engine.check_draw([0], sampling)[1]
    return SampleSet(
        **notes,
        classes=tuple(sorted(set(map(int, classes)))),
        per_class=per_class,
        uint8=uint8,
        batch=engine.draw_at_once(sampling, batch),
        image_size=engine.spec.size_of_grid(engine.transformer.grid),  # type: ignore[arg-type]
    )


def part_path(folder: Path, part: int) -> Path:
    """A part's file in a set's folder."""
    return folder / PARTS / f"part-{part:05d}.npz"


def find_set(folder: Path, wanted: SampleSet | None = None) -> SetFolder:
    """A set, and what a folder, which may not be there yet, has of it.

    Args:
        folder: Where it is, or shall be.
        wanted: The set; None is the one whose parts are there.

    Raises:
        FolderError: The folder has parts of another set, damaged ones, or of no set at all.
    """
    found: dict[int, Part] = {}
    for path in sorted((folder / PARTS).glob("part-*.npz")):
        own_set, part = read_part(path)
        wanted = wanted or own_set
        other = None if own_set == wanted else _difference(own_set, wanted)
        if path != part_path(folder, part.part):
            other = f"name is not {part_path(folder, part.part).name}"
        if other:
            raise FolderError(
                f"{path} is of another set: its {other}; choose another folder, or remove it",
                option="-o",
            )
        found[part.part] = part
    if wanted is None:
        raise FolderError(f"{folder}: expected parts of a set, in {PARTS}/, found none")
    return SetFolder(folder, wanted, found)


def read_part(path: Path) -> tuple[SampleSet, Part]:
    """The set that a part's file is of and what it tells of itself, held against its pixels' shape;
    of these nothing is read.

    Raises:
        FolderError: Damaged, or no such file.
    """
    try:
        with open_input(path, "part of a set") as file:
            archive = RowArchive(file)
            own_set = _set_of_text(archive.text(_SET))
            part = read_record(Part, json_from_text(archive.text(_PART)), _PART)
            found = archive.header(_IMAGES)
    except (BadRecord, DamagedArchive, InputError) as error:
        raise _damaged(path) from error
    count = len(own_set.numbers(part.part))
    if not count or found != ((count, *own_set.image_size, 3), np.dtype(np.uint8)):
        raise _damaged(path)
    return own_set, part


@functools.lru_cache(maxsize=1)  # the same in all parts of a set, and long where classes are many
def _set_of_text(text: str) -> SampleSet:
    return read_record(SampleSet, json_from_text(text), _SET)


def draw_parts(
    engine: Engine, found: SetFolder, shard: tuple[int, int] = (0, 1), begin: Begin = silent
) -> Iterator[int]:
    """Draw what a folder lacks of a set, or of a shard of it.

    Args:
        engine: What draws; the set is of it.
        found: The set, and what is there of it.
        shard: I and N: the parts I, I + N, ... are drawn, I from 0.
        begin: Called when drawing begins, with the number of positions of all images.

    Yields:
        The number of images of a part, when its file is there.

    Raises:
        FolderError: A file cannot be written.
    """
    drawn_set, own = found.set, found.lacking(shard)
    batches = draw_numbers(
        engine,
        (number for part in own for number in drawn_set.numbers(part)),
        found.images_of(own),
        Sampling(**to_json(drawn_set.sampling)),
        batch=drawn_set.batch,
        begin=begin,
    )
    pixels = (uint8_from_images(batch.images, drawn_set.uint8) for batch in batches)
    device = engine.backend.device
    return keep_parts(found, shard, ((batch, device) for batch in pixels))


def keep_parts(
    found: SetFolder,
    shard: tuple[int, int],
    drawn: Iterator[tuple[npt.NDArray[np.uint8], str]],
) -> Iterator[int]:
    """Write the parts that a folder lacks of a shard, as their batches come.

    Args:
        found: The set, and what is there of it.
        shard: As for `draw_parts`.
        drawn: Pixels (b, H, W, 3) of each batch, in the order of parts and of numbers, and what
            drew them.

    Yields:
        As `draw_parts` does.

    Raises:
        FolderError: A file cannot be written.
    """
    for number in found.lacking(shard):
        count, pixels, devices = found.images_of([number]), list[npt.NDArray[np.uint8]](), set()
        while sum(map(len, pixels)) < count:
            batch, device = next(drawn)
            pixels.append(batch)
            devices.add(device)
        told = ", ".join(sorted(devices))[:255]
        _write_part(found, Part(part=number, shards=shard[1], device=told), pixels)
        yield count


def _write_part(found: SetFolder, part: Part, pixels: Sequence[npt.NDArray[np.uint8]]) -> None:
    shape = (len(found.set.numbers(part.part)), *found.set.image_size, 3)
    arrays: dict[str, Any] = {_IMAGES: (shape, np.dtype(np.uint8), pixels)}
    for name, record in ((_SET, found.set), (_PART, part)):
        text = np.array(canonical_json(to_json(record)))
        arrays[name] = text.shape, text.dtype, [text]
    with new_file(part_path(found.path, part.part)) as temporary:
        write_rows(temporary, arrays)


def _difference(found: SampleSet, wanted: SampleSet) -> str | None:
    """The first field in which two sets differ, and both values."""
    one, two = (_flat(to_json(each)) for each in (found, wanted))
    for name in one | two:
        if one.get(name) != two.get(name):
            return f"{name} is {one.get(name)!s:.60}, not {two.get(name)!s:.60}"
    return None


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    sampling = {f"sampling.{name}": item for name, item in value["sampling"].items()}
    return {name: item for name, item in value.items() if name != "sampling"} | sampling


def _damaged(path: Path) -> FolderError:
    return FolderError(f"{path} is no whole part of a set; remove it, and draw it again")
