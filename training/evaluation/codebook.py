"""The codebook report of a data set's pictures, as any engine encodes them; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.runtime.codebook import CodebookCount, CodebookReport
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels
from m2kit.training.datasets.cut import Cut, cut_pixels
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import Collection


def codebook_of(
    engine: Engine, data: DataSet, *, size: int | None = None, begin: Begin = silent
) -> tuple[CodebookReport, int, int]:
    """Encode every picture of a data set, training and held out, cut at its centre, and count.

    Args:
        engine: Of any model with the tokenizer.
        data: The data set.
        size: Height and width in pixels; None is the model's, or else the pictures' own.
        begin: Shows how far it is.

    Returns:
        The report, and how many pictures it is of and how many could not be read.

    Raises:
        InputError: Pictures of several sizes, or of one that the model does not take, or none that
            can be read.
    """
    collection = data.loader()
    cut = centre_cut(engine, data.name, size or engine.spec.image_size or collection.size)
    total = sum(len(part.labels) for part in (collection.train, collection.held_out))
    count = CodebookCount(engine.spec.vocabularies, engine.spec.tokenizer.bit_order)
    at_once, crops, unread = engine.compute_at_once(cut.size, None), _crops(collection, cut), 0
    advance = begin("encoding", total)
    while part := list(islice(crops, at_once)):
        read = [crop for crop in part if crop is not None]
        if read:
            count.add(engine.encode(images_from_pixels(np.stack(read))))
        unread += len(part) - len(read)
        advance(len(part))
    if unread == total:
        raise InputError(f"none of the {total} pictures of {data.name} can be read")
    return count.report(), total - unread, unread


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
            f"the pictures of {name} are of several sizes; name the one to encode", option="--size"
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


def _crops(collection: Collection, cut: Cut) -> Iterator[npt.NDArray[np.uint8] | None]:
    """Every picture's crop (H, W, 3) uint8, None in place of one that cannot be read."""
    for pictures in (collection.train, collection.held_out):
        for index in range(len(pictures.labels)):
            try:
                picture = pictures.read(index)
            except InputError:
                yield None
            else:
                yield cut_pixels(picture, cut, cut.random(0, index))
