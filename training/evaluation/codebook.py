"""The codebook report of a data set's pictures, as any engine encodes them; torch is not needed but
for clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.runtime.codebook import CodebookCount, CodebookReport
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.evaluation.originals import originals_of


def codebook_of(
    engine: Engine,
    data: DataSet,
    *,
    size: int | None = None,
    begin: Begin = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[CodebookReport, int, int]:
    """Encode every picture of a data set, training and held out, cut at its centre, and count; for
    a model of clips the middle one of every film of a folder.

    Args:
        engine: Of any model with the tokenizer.
        data: The data set.
        size: Height and width in pixels; None is the model's, or else the pictures' own.
        begin: Shows how far it is.
        tell: Called with what of the data set is left out, if anything is.

    Returns:
        The report, and how many pictures it is of and how many could not be read.

    Raises:
        InputError: Pictures of several sizes, or of one that the model does not take, or none that
            can be read.
    """
    originals = originals_of(engine, data, size=size, begin=begin)
    assert originals.size is not None  # none of them is left whole
    if originals.left_out:
        tell(originals.left_out)
    total, unread = len(originals), 0
    count = CodebookCount(engine.spec.vocabularies, engine.spec.tokenizer.bit_order)
    at_once = engine.compute_at_once(originals.size, None)
    advance = begin("encoding", total)
    for start in range(0, total, at_once):
        part = [p for _, p in originals.read(range(start, min(start + at_once, total)))]
        read = [pixels for pixels in part if pixels is not None]
        if read:
            count.add(engine.encode(images_from_pixels(np.stack(read))))
        unread += len(part) - len(read)
        advance(len(part))
    if unread == total:
        raise InputError(f"none of the {total} {originals.words} of {data.name} can be read")
    return count.report(), total - unread, unread + originals.unread
