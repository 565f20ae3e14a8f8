"""Drawing any number of images, batch by batch: what the command line, evaluation, a server and
Python users draw with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling, is_integer


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """A finished batch of n images.

    Attributes:
        numbers: (n) uint64: an image depends on its class, the seed and this alone.
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
    batch: int | None = None,
    begin: Begin = silent,
) -> Iterator[DrawnImages]:
    """Draw `count` images of each class, in that order, numbered from `first_image` on.

    Args:
        engine: What draws.
        classes: Class ids; one may stand several times.
        count: Images per class.
        sampling: How to draw; the model's own where it says None.
        first_image: Number of the first image, to draw a set in shards.
        batch: Images at once, at most; by default as many as is good here.
        begin: Called when drawing begins, with the number of positions of all images.

    Yields:
        Finished batches; memory does not depend on how many.

    Raises:
        InputError: A class, number or option out of range: before the first batch is asked for.
    """
    if not is_integer(count) or count < 1:
        raise InputError(f"expected one image per class or more, found {count!r:.40}")
    total = len(classes) * count
    if not is_integer(first_image) or not 0 <= first_image <= 2**64 - total:
        raise InputError(
            f"first_image: expected {total} images numbered in 0..2^64-1, found the first "
            f"numbered {first_image!r:.40}; choose a lower one",
            option="--first-image",
        )
    engine.check_draw(classes, sampling)
    at_once = engine.draw_at_once(sampling, batch)

    def batches() -> Iterator[DrawnImages]:
        advance = begin("drawing", total * engine.transformer.positions)
        for start in range(0, total, at_once):
            size = min(at_once, total - start)
            own = np.array([classes[(start + i) // count] for i in range(size)], np.int64)
            numbers = np.arange(size, dtype=np.uint64) + np.uint64(first_image + start)
            for drawn in engine.generate(own, sampling, image_numbers=numbers):
                advance(size)
                tokens = drawn.tokens
            yield DrawnImages(numbers, own, tokens, engine.decode(tokens, batch=batch))

    return batches()
