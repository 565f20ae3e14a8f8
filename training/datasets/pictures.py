"""Labelled pictures, each read when it is asked for, wherever they are kept. sources.py finds them;
what a training run cuts out of them is crops.py's."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.inputs import open_input
from m2kit.runtime.pictures import read_picture

Labels = npt.NDArray[np.int64]
_NAMED = 10  # pictures that could not be read, of those that are told
_LETTERS = 200  # of a name that is told


class Pictures(Protocol):
    """Labelled pictures of one split."""

    @property
    def labels(self) -> Labels:
        """(n) int64, 0..classes-1."""

    @property
    def groups(self) -> Sequence[str]:
        """(n) names; pictures of one name must not be separated. Each its own, mostly."""

    def read(self, index: int) -> Image.Image:
        """A picture, in mode RGB.

        Raises:
            InputError: It cannot be read.
        """

    def name(self, index: int) -> str:
        """What a picture is called, where it is told that it cannot be read."""

    def stamp(self, index: int) -> str:
        """What is another where a picture was replaced under its name; found without reading it,
        where it is a file."""


@dataclass(frozen=True, slots=True)
class ArrayPictures:
    """Pictures in memory: (n, H, W, 3) uint8."""

    images: npt.NDArray[np.uint8]
    labels: Labels
    groups: Sequence[str]

    def read(self, index: int) -> Image.Image:
        """A picture, in mode RGB."""
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        """Its group."""
        return self.groups[index]

    def stamp(self, index: int) -> str:
        """A hash of its pixels."""
        return hashlib.sha256(self.images[index].tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class FilePictures:
    """Picture files, named by their paths."""

    groups: Sequence[str]
    labels: Labels

    def read(self, index: int) -> Image.Image:
        """A picture, in mode RGB."""
        return read_picture(Path(self.groups[index]))

    def name(self, index: int) -> str:
        """Its path."""
        return self.groups[index]

    def stamp(self, index: int) -> str:
        """The file's size and time."""
        return file_stamp(Path(self.groups[index]))


@dataclass(frozen=True, slots=True)
class ShardPictures:
    """Pictures inside tar files, found again by their place there.

    Attributes:
        places: (n) of file, first byte and number of bytes.
    """

    groups: Sequence[str]
    labels: Labels
    places: Sequence[tuple[Path, int, int]]

    def read(self, index: int) -> Image.Image:
        """A picture, in mode RGB."""
        path, start, size = self.places[index]
        with open_input(path, "shard") as file:
            file.seek(start)
            return read_picture(io.BytesIO(file.read(size)), name=self.groups[index])

    def name(self, index: int) -> str:
        """The shard's path and the key."""
        return self.groups[index]

    def stamp(self, index: int) -> str:
        """Its place, and the shard's size and time."""
        path, start, size = self.places[index]
        return f"{start} {size} {file_stamp(path)}"


@dataclass(frozen=True, slots=True)
class SomePictures:
    """A choice of pictures, by their indices in `whole`."""

    whole: Pictures
    chosen: npt.NDArray[np.int64]

    @property
    def labels(self) -> Labels:
        """(n) int64."""
        return self.whole.labels[self.chosen]

    @property
    def groups(self) -> Sequence[str]:
        """(n) names."""
        return [self.whole.groups[index] for index in self.chosen]

    def read(self, index: int) -> Image.Image:
        """A picture, in mode RGB."""
        return self.whole.read(int(self.chosen[index]))

    def name(self, index: int) -> str:
        """What it is called in the whole."""
        return self.whole.name(int(self.chosen[index]))

    def stamp(self, index: int) -> str:
        """As the whole has it."""
        return self.whole.stamp(int(self.chosen[index]))


@dataclass(frozen=True, slots=True)
class Collection:
    """What is kept in one place.

    Attributes:
        train: To be trained on.
        held_out: To be measured on.
        classes: Names, by label.
        size: Height and width in pixels, where all of them are squares of one size.
    """

    train: Pictures
    held_out: Pictures
    classes: tuple[str, ...]
    size: int | None = None


def file_stamp(path: Path) -> str:
    """Of a file; one that is gone has a stamp, too."""
    try:
        status = path.stat()
    except OSError:
        return "none"
    return f"{status.st_size} {status.st_mtime_ns}"


def line_of_unread(names: Sequence[str]) -> str:
    """Says that pictures could not be read, and names the first ones of them.

    Args:
        names: Of all of them. Long ones are cut, those that are not printable are escaped.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    them = "pictures" if len(names) > 1 else "picture"
    told = [(name if name.isprintable() else ascii(name))[:_LETTERS] for name in names[:_NAMED]]
    return (
        f"{len(names)} {them} could not be read, and the next ones stood in for them: "
        + ", ".join(told)
        + more
    )


def split_by_group(pictures: Pictures, share: float, seed: int = 0) -> tuple[Pictures, Pictures]:
    """Divide pictures into those to train on and those held out, as `held_out_of` chooses them."""
    chosen = held_out_of(pictures.groups, pictures.labels, share, seed)
    train, rest = (np.flatnonzero(mask).astype(np.int64) for mask in (~chosen, chosen))
    return SomePictures(pictures, train), SomePictures(pictures, rest)


def held_out_of(
    groups: Sequence[str], labels: Labels, share: float, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Which of n things are held out, of every class about alike: (n) bool.

    Those of a group stay together. Which groups are held out depends on their names, the seed and
    the other groups of their class alone: not on the order in which they were found.

    Args:
        groups: (n) names.
        labels: (n) classes.
        share: Of the groups of a class that is held out; at least one, where a class has two.
        seed: Chooses them.
    """
    members: dict[int, dict[str, list[int]]] = {}  # class -> group -> indices
    of_group: dict[str, int] = {}  # a group's class: that of its first member
    for index, (group, label) in enumerate(zip(groups, labels, strict=True)):
        owner = of_group.setdefault(group, int(label))
        members.setdefault(owner, {}).setdefault(group, []).append(index)
    held_out: list[int] = []
    for of_class in members.values():
        ranked = sorted(of_class, key=lambda name: _rank(f"{seed}/{name}"))
        count = max(round(share * len(ranked)), 1 if len(ranked) > 1 else 0)
        held_out += [index for name in ranked[:count] for index in of_class[name]]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[held_out] = True
    return chosen


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="backslashreplace")).digest()  # paths may be no text
