"""What a model is measured on, as evaluation reads it: each picture of a data set, or one clip of
each film of a folder, once, in their order, in lots that are measured one after the other."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError, require
from m2kit.families.video import VideoTokenizerSpec
from m2kit.progress import Begin, silent
from m2kit.runtime.arguments import check_pictures
from m2kit.runtime.engine import Engine
from m2kit.runtime.films import FILM_SUFFIXES
from m2kit.training.datasets.cut import Cut, check_length, cut_pixels
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import Collection, Pictures
from m2kit.training.evaluation.protocol import ALL, HELD_OUT, TRAIN, Split, printable

LOT = 128  # pictures, or frames, that are measured before the sums so far are kept
PICTURES_RESIZE = "Pillow bilinear, the shorter side"
Pixels = npt.NDArray[np.uint8]
_STILL_TOO = ".gif", ".webp"  # files of these may be pictures


class Originals(ABC):
    """What a model is measured on.

    Attributes:
        title: Of the data set.
        split: Which half of it they are.
        size: (H, W) of pictures, (T, H, W) of clips; None is each picture's own.
        resize: How they were scaled before they were cropped.
        clip: Which frames of which films; None of pictures.
        short: Films that have too few, of both halves, and are left out; None of pictures.
        unread: Films that cannot be read, likewise; 0 of pictures, of which none was read yet.
        left_out: What there is to say of films that are left out, one line; or nothing.
    """

    title: str
    split: Split
    size: tuple[int, ...] | None
    resize: str
    clip: str | None = None
    short: int | None = None
    unread: int = 0
    left_out: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def pixels(self, index: int) -> Pixels:
        """One of them, (*size, 3) uint8.

        Raises:
            InputError: It cannot be read.
        """

    @abstractmethod
    def stamp(self) -> str:
        """A digest that is another once anything of the data set, measured or not, was replaced
        under its name; nothing is read for it."""

    @property
    def frames(self) -> int | None:
        """T, of clips; None of pictures."""
        return None if self.clip is None or self.size is None else self.size[0]

    @property
    def words(self) -> str:
        """What they are called."""
        return "pictures" if self.clip is None else "films"

    @property
    def lots(self) -> list[int]:
        """How many there are in each lot in which they are measured."""
        return [len(self.of_lot(lot)) for lot in range(-(-len(self) // self._of_a_lot))]

    def of_lot(self, lot: int) -> range:
        """The indices of a lot."""
        count = self._of_a_lot
        return range(lot * count, min((lot + 1) * count, len(self)))

    def read(self, indices: range) -> Iterator[tuple[int, Pixels | None]]:
        """Index and pixels (*size, 3) uint8 of each; None of one that cannot be read."""
        for index in indices:
            try:
                yield index, self.pixels(index)
            except InputError:
                yield index, None

    @property
    def _of_a_lot(self) -> int:
        return max(1, LOT // (self.frames or 1))


class PictureOriginals(Originals):
    """Pictures of a data set.

    Attributes:
        labels: (n) int64.
        digest: Of labels and groups, before any picture is read.
    """

    def __init__(
        self, data: DataSet, collection: Collection, split: Split, cut: Cut | None
    ) -> None:
        """Find them.

        Args:
            data: The data set.
            collection: What it has loaded.
            split: Which half of it.
            cut: How they are cut; None leaves them whole.

        Raises:
            InputError: There are none.
        """
        halves = {TRAIN: [collection.train], HELD_OUT: [collection.held_out]}
        halves[ALL] = halves[TRAIN] + halves[HELD_OUT]
        self.title = printable(data.title)
        self.split, self._cut = split, cut
        self.size = None if cut is None else cut.size
        self.resize = "none" if cut is None else PICTURES_RESIZE
        self._places: list[tuple[Pictures, int]] = [
            (half, index) for half in halves[split] for index in range(len(half.labels))
        ]
        if not self._places:
            raise InputError(f"the data set {data.name} has no picture ({split})", option="--split")
        self.labels = np.concatenate([half.labels for half in halves[split]]).astype(np.int64)
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for half in halves[split]:
            digest.update("\0".join(half.groups).encode("utf-8", "surrogatepass"))
        self.digest = digest.hexdigest()
        self._collection = collection

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def stamp(self) -> str:
        """As every one has it."""
        digest = hashlib.sha256(self.digest.encode())
        for half in (self._collection.train, self._collection.held_out):
            for index in range(len(half.labels)):
                digest.update(half.stamp(index).encode() + b"\n")
        return digest.hexdigest()

    def pixels(self, index: int) -> Pixels:
        """A picture (H, W, 3) uint8.

        Raises:
            InputError: It cannot be read.
        """
        pictures, place = self._places[index]
        picture = pictures.read(place)
        check_length(picture, pictures.name(place))
        if self._cut is None:
            return np.asarray(picture)
        return cut_pixels(picture, self._cut, self._cut.random(0, place))


def originals_of(
    engine: Engine,
    data: DataSet,
    *,
    split: Split = ALL,
    size: int | None = None,
    whole: bool = False,
    begin: Begin = silent,
) -> Originals:
    """The pictures of a data set, or for a model of clips those of a folder of films, as a model is
    measured on them.

    Args:
        engine: The model.
        data: The data set.
        split: All of it, or one half.
        size: Side in pixels of the square at the centre; None is the model's, or else the
            pictures' own.
        whole: Leave pictures as they are.
        begin: Shows how many films were looked through.

    Raises:
        InputError: There are none, or none of what the model takes, or no size that it takes.
        BackendError: Films are to be read, and PyAV or PyTorch is not installed.
    """
    tokenizer = engine.spec.tokenizer
    if isinstance(tokenizer, VideoTokenizerSpec):
        require("torch", extra="evaluate", what="reading clips")
        from m2kit.training.evaluation.clip_originals import clips_of

        return clips_of(engine, data, split=split, size=size, whole=whole, begin=begin)
    check_pictures(tokenizer)
    try:
        collection = data.loader()
    except InputError as error:
        if not _has_films(Path(data.name)):
            raise
        raise InputError(
            f"{data.name} holds films and no pictures, and this model takes {tokenizer.picture}; "
            "give it pictures, or the films to a video tokenizer",
            option="--data",
        ) from error
    if whole:
        return PictureOriginals(data, collection, split, None)
    wanted = size or engine.spec.image_size or collection.size
    cut = centre_cut(engine, data.name, wanted)
    return PictureOriginals(data, collection, split, cut)


def centre_cut(engine: Engine, name: str, size: int | tuple[int, ...] | None) -> Cut:
    """The cut at the centre that a model takes.

    Args:
        engine: The model.
        name: Of the data set, whose pictures or films they are.
        size: A square's side or (height, width) in pixels; None is not known.

    Raises:
        InputError: It is not known, or the model does not take it.
    """
    if size is None:
        raise InputError(
            f"the pictures of {name} are of several sizes; name the one to take", option="--size"
        )
    height, width = (size, size) if isinstance(size, int) else size
    strides = engine.spec.tokenizer.strides[-2:]
    if height % strides[0] or width % strides[1]:
        raise InputError(
            f"those of {name} would have {height} x {width} pixels, and this tokenizer divides "
            f"images by {' x '.join(map(str, strides))}; choose another size",
            option="--size",
        )
    return Cut((height, width))


def _has_films(folder: Path) -> bool:
    """Whether some of its files, or of the folders in it, are films by their suffix and cannot be
    pictures."""
    films = tuple(suffix for suffix in FILM_SUFFIXES if suffix not in _STILL_TOO)
    return any(name.lower().endswith(films) for _, _, names in os.walk(folder) for name in names)
