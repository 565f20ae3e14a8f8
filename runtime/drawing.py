"""Drawing any number of images, batch by batch: what the command line, evaluation, a server and
Python users draw with.

The i-th image of class c has the number c * 2^32 + i, and an image depends on its number, its class
and the seed alone. So a class draws the same images whatever else is drawn, and no two classes
share their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from m2kit import __version__
from m2kit.errors import InputError
from m2kit.hashes import sha256_of_json
from m2kit.progress import Begin, silent
from m2kit.records import JsonObject, is_integer, to_json
from m2kit.runtime.decoding import Drawn
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling

IMAGES_OF_A_CLASS = 2**32
Watch = Callable[[Drawn], None]  # told each position of a batch, and what is drawn of it


def unwatched(drawn: Drawn) -> None:
    """A `Watch` that does nothing."""


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """A finished batch of n images.

    Attributes:
        numbers: (n) uint64, class * 2^32 + place in the class.
        class_ids: (n) int64.
        tokens: (n, h, w, K) int64.
        images: (n, 3, H, W) float32 in [-1, 1].
    """

    numbers: npt.NDArray[np.uint64]
    class_ids: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    images: npt.NDArray[np.float32]


def draw_images(
    engine: Engine,
    classes: Sequence[int],
    count: int,
    sampling: Sampling | None = None,
    *,
    first_image: int = 0,
    skip: Collection[int] = (),
    batch: int | None = None,
    begin: Begin = silent,
    watch: Watch = unwatched,
) -> Iterator[DrawnImages]:
    """Draw images `first_image`, `first_image` + 1, ... of each class, `count` of them, class by
    class in the given order.

    Args:
        engine: What draws.
        classes: Class ids, each once.
        count: Images per class.
        sampling: How to draw; the model's own where it says None.
        first_image: Place in its class of the first image, to draw a set in shards.
        skip: Numbers, of these images, that need not be drawn.
        batch: Images at once, at most; by default as many as is good here.
        begin: Called when drawing begins, with the number of positions of all images.
        watch: Called after each position of a batch.

    Yields:
        Finished batches; memory does not depend on how many.

    Raises:
        InputError: A class, number or option out of range: before the first batch is asked for.
    """
    if not is_integer(count) or count < 1:
        raise InputError(f"expected one image per class or more, found {count!r:.40}")
    if not is_integer(first_image) or not 0 <= first_image <= IMAGES_OF_A_CLASS - count:
        raise InputError(
            f"first_image: a class has images 0..2^32-1, found {count} of them from "
            f"{first_image!r:.40} on; choose a lower one, or fewer images",
            option="--first-image",
        )
    engine.check_draw(classes, sampling)
    if len(set(classes)) < len(classes):
        twice = next(c for c in classes if list(classes).count(c) > 1)
        raise InputError(
            f"class {twice} stands there several times; name it once, with as many images as wanted"
        )
    engine.draw_at_once(sampling, batch)
    numbers = (
        number
        for class_id in map(int, classes)
        for number in _numbers(class_id, first_image, count)
        if number not in skip
    )
    left = len(classes) * count - len(skip)
    return draw_numbers(engine, numbers, left, sampling, batch=batch, begin=begin, watch=watch)


def draw_numbers(
    engine: Engine,
    numbers: Iterable[int],
    count: int,
    sampling: Sampling | None = None,
    *,
    batch: int | None = None,
    begin: Begin = silent,
    watch: Watch = unwatched,
) -> Iterator[DrawnImages]:
    """Draw images of given numbers, in their order.

    Args:
        engine: What draws.
        numbers: class * 2^32 + place in the class, of each image; read as they are drawn.
        count: How many there are.
        sampling: As for `draw_images`.
        batch: Likewise; every batch has as many, but for the last one.
        begin: Likewise.
        watch: Likewise.

    Yields:
        Finished batches.

    Raises:
        InputError: A class, number or option out of range, when it is reached.
    """
    at_once = engine.draw_at_once(sampling, batch)
    advance = begin("drawing", count * engine.transformer.positions)
    wanted = iter(numbers)
    while part := list(islice(wanted, at_once)):
        own = np.array([number // IMAGES_OF_A_CLASS for number in part], np.int64)
        for drawn in engine.generate(own, sampling, image_numbers=np.array(part, np.uint64)):
            advance(len(part))
            watch(drawn)
            tokens = drawn.tokens
        images = engine.decode(tokens, batch=batch)
        yield DrawnImages(np.array(part, np.uint64), own, tokens, images)


def _numbers(class_id: int, first_image: int, count: int) -> range:
    first = class_id * IMAGES_OF_A_CLASS + first_image
    return range(first, first + count)


def notes_of_drawing(engine: Engine, sampling: Sampling | None = None) -> JsonObject:
    """What images depend on besides class and number, to be kept with them: sampling with the
    model's defaults filled in, the engine's name and hashes, m2kit's version."""
    notes: JsonObject = {"software": f"m2kit {__version__}"}
    if engine.info is not None:
        hashes = {name: entry.sha256 for name, entry in engine.info.files.items()}
        notes["engine"] = engine.info.name
        notes["engine_files_sha256"] = sha256_of_json(hashes)
        notes["checkpoint_sha256"] = engine.info.source.checkpoint_sha256
    _, resolved = engine.check_draw([0], sampling)
    return notes | {"sampling": to_json(resolved)}


def filled(tokens: npt.NDArray[np.int64], drawn: int) -> npt.NDArray[np.int64]:
    """Tokens (B, h, w, K) of which so many positions are drawn, the others filled by folding the
    drawn ones back, row by row, as in a mirror.

    The decoder's adaptive GroupNorm reads mean and variance of all codes, so that what stands in
    the place of the rest changes the colours of the whole. Of 36 emoji, the drawn part is as it
    will be at the end to 20, 23.6 and 24.8 dB after a quarter, a half and three quarters; with the
    last row repeated 20.4, 22.9 and 24.5, with codes of 0 15.1, 18.2 and 24.4, with ids of 0 14.7,
    16.3 and 21.2, with random ids 17.6, 20.1 and 23.2.
    """
    count, rows, columns, depth = tokens.shape
    flat = tokens.reshape(count, rows * columns, depth).copy()
    missing, whole = np.arange(drawn, rows * columns), drawn // columns
    row, column = np.divmod(missing, columns)
    mirrored = (whole - 1 - (row - whole) % max(1, whole)) * columns + column
    flat[:, drawn:] = flat[:, mirrored if whole else missing % drawn]
    return flat.reshape(tokens.shape)
