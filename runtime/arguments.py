"""What a user hands to an engine, checked and as arrays: shapes, types, ranges, one line for each
error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.families.family import TokenizerSpec
from m2kit.families.sizes import misfit
from m2kit.records import is_integer
from m2kit.runtime.interchange import array_from, images_from
from m2kit.tokens import check_tokens


def tokens_of(spec: ModelSpec, tokens: Any) -> npt.NDArray[np.int64]:
    """The tokens as (B, h, w, K) int64.

    Raises:
        InputError: Not integers of that shape, or an id outside its sub-vocabulary.
    """
    axes = tuple(map(str.lower, spec.tokenizer.axes))
    return check_tokens(array_from(tokens, "tokens"), spec.vocabularies, axes)


def images_of(spec: ModelSpec, images: Any) -> npt.NDArray[np.float32]:
    """The images as (B, 3, H, W) float32 in [-1, 1].

    Raises:
        InputError: Not images, or of a size or range that the model does not take.
    """
    axes = spec.tokenizer.axes
    array = images_from(images, len(axes))
    if array.ndim != 2 + len(axes) or array.shape[1] != 3 or not len(array):
        raise InputError(
            f"images must have shape (B, 3, {', '.join(axes)}), B at least 1, found {array.shape}"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"images must be floats in [-1, 1] or uint8, found {array.dtype}")
    size = array.shape[2:]
    if wrong := misfit(spec.tokenizer, size):
        raise InputError(f"{wrong}; resize, crop or frame the images", option="--pad")
    if not np.isfinite(array).all() or np.abs(array).max() > 1.0001:
        raise InputError(
            f"images must lie in [-1, 1], found {array.min():.3g}..{array.max():.3g}; "
            "scale pixels in 0..255 by x / 127.5 - 1, or hand them over as uint8"
        )
    spec.tokenizer.check_grid(spec.grid_of_size(size))
    return np.ascontiguousarray(array, np.float32)


def check_pictures(tokenizer: TokenizerSpec) -> None:
    """Refuse a model that does not take pictures, for what reads and writes picture files.

    Raises:
        InputError: It takes clips.
    """
    axes = tokenizer.axes
    if len(axes) != 2:
        raise InputError(
            f"this model takes {tokenizer.picture} ({', '.join(axes)}), no picture; give it films, "
            f"such as clip.mp4, or in Python (B, 3, {', '.join(axes)}) arrays"
        )


def latents_of(spec: ModelSpec, latents: Any) -> npt.NDArray[np.float32]:
    """The latents as (B, Z, h, w) float32.

    Raises:
        InputError: Not finite floats of that shape.
    """
    axes, channels = spec.tokenizer.axes, spec.tokenizer.code_channels
    array = array_from(latents, "latents")
    if array.ndim != 2 + len(axes) or array.shape[1] != channels or not array.size:
        shape = f"(B, {channels}, {', '.join(map(str.lower, axes))})"
        raise InputError(f"latents must have shape {shape}, found {array.shape}")
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise InputError(f"latents must be finite floats, found {array.dtype}")
    return np.ascontiguousarray(array, np.float32)


def classes_of(class_ids: Any, highest: int) -> npt.NDArray[np.int64]:
    """The class ids as (B) int64.

    Raises:
        InputError: Not a list of integers in 0..highest.
    """
    classes = array_from(class_ids, "class_ids", object)
    if classes.ndim != 1 or not len(classes) or not all(map(is_integer, classes)):
        raise InputError(f"class_ids must be a non-empty list of integers, found {class_ids!r:.80}")
    for class_id in classes:
        if not 0 <= class_id <= highest:
            raise InputError(
                f"class {class_id} is out of range: this model has classes 0..{highest}"
            )
    return classes.astype(np.int64)


def image_numbers_of(numbers: Any, images: int) -> npt.NDArray[np.uint64]:
    """The image numbers as (B) uint64, 0..B-1 by default.

    Raises:
        InputError: Not B integers in 0..2^64-1.
    """
    if numbers is None:
        return np.arange(images, dtype=np.uint64)
    values = array_from(numbers, "image_numbers", object).ravel()
    if len(values) != images or not all(is_integer(n) and 0 <= n < 2**64 for n in values):
        raise InputError(
            f"image_numbers must be {images} integers in 0..2^64-1, found {values[:5].tolist()}"
        )
    return np.array([int(number) for number in values], dtype=np.uint64)


def check_flag(value: Any, what: str) -> None:
    """Refuse what is neither True nor False.

    Raises:
        InputError: It is not; named `what`.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{what} must be True or False, found {value!r:.60}")


def check_function(value: Any, what: str) -> None:
    """Refuse what cannot be called.

    Raises:
        InputError: It cannot; named `what`.
    """
    if not callable(value):
        raise InputError(f"{what} must be a function, found {value!r:.60}")


def batch_of(batch: Any) -> int | None:
    """The number of images at once; None where none is given.

    Raises:
        InputError: No whole number from 1.
    """
    if batch is not None and (not is_integer(batch) or batch < 1):
        raise InputError(f"batch must be a whole number from 1, found {batch!r:.60}")
    return None if batch is None else int(batch)
