"""The pictures of a data set as evaluation reads them: each once, in their order, cut at the centre
or whole, in lots that are measured one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.runtime.arguments import check_pictures
from m2kit.runtime.engine import Engine
from m2kit.training.datasets.cut import Cut, check_length, cut_pixels
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import Collection, Pictures
from m2kit.training.evaluation.protocol import ALL, HELD_OUT, TRAIN, Split, printable

LOT = 128  # pictures that are measured before the sums so far are kept
RESIZE = "Pillow bilinear, the shorter side"
Pixels = npt.NDArray[np.uint8]


class Originals:
    """Pictures of a data set.

    Attributes:
        title: Of the data set.
        split: Which half of it they are.
        cut: How they are cut; None leaves them whole.
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
        self.split, self.cut = split, cut
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
        """A digest that is another once any picture of the data set, measured or not, was replaced
        under its name; none of them is read."""
        digest = hashlib.sha256(self.digest.encode())
        for half in (self._collection.train, self._collection.held_out):
            for index in range(len(half.labels)):
                digest.update(half.stamp(index).encode() + b"\n")
        return digest.hexdigest()

    @property
    def lots(self) -> list[int]:
        """How many there are in each lot in which they are measured."""
        return [len(self.of_lot(lot)) for lot in range(-(-len(self) // LOT))]

    def of_lot(self, lot: int) -> range:
        """The indices of a lot."""
        return range(lot * LOT, min((lot + 1) * LOT, len(self)))

    def read(self, indices: range) -> Iterator[tuple[int, Pixels | None]]:
        """Index and pixels (H, W, 3) uint8 of each; None of one that cannot be read."""
        for index in indices:
            pictures, place = self._places[index]
            try:
                picture = pictures.read(place)
                check_length(picture, pictures.name(place))
            except InputError:
                yield index, None
                continue
            if self.cut is None:
                yield index, np.asarray(picture)
            else:
                yield index, cut_pixels(picture, self.cut, self.cut.random(0, place))


def originals_of(
    engine: Engine,
    data: DataSet,
    *,
    split: Split = ALL,
    size: int | None = None,
    whole: bool = False,
) -> Originals:
    """The pictures of a data set as a model is measured on them.

    Args:
        engine: The model.
        data: The data set.
        split: All of it, or one half.
        size: Side in pixels of the square at the centre; None is the model's, or else the
            pictures' own.
        whole: Leave pictures as they are.

    Raises:
        InputError: There are none, or no size that the model takes.
    """
    check_pictures(engine.spec.tokenizer)
    collection = data.loader()
    if whole:
        return Originals(data, collection, split, None)
    wanted = size or engine.spec.image_size or collection.size
    return Originals(data, collection, split, centre_cut(engine, data.name, wanted))


def centre_cut(engine: Engine, name: str, size: int | tuple[int, ...] | None) -> Cut:
    """The cut at the centre that a model takes.

    Args:
        engine: The model.
        name: Of the data set.
        size: A square's side or (height, width) in pixels; None is not known.

    Raises:
        InputError: It is not known, or the model does not take it.
    """
    if size is None:
        raise InputError(
            f"the pictures of {name} are of several sizes; name the one to take", option="--size"
        )
    height, width = (size, size) if isinstance(size, int) else size
    strides = engine.spec.tokenizer.strides
    if len(strides) != 2 or height % strides[0] or width % strides[1]:
        raise InputError(
            f"pictures of {name} would have {height} x {width} pixels, and this tokenizer divides "
            f"images by {' x '.join(map(str, strides))}; choose another size",
            option="--size",
        )
    return Cut((height, width))
