"""Images and numbers of other libraries, in and out: numpy, PIL and, without importing it, torch.

Out there is nothing to do for torch: `torch.from_numpy` takes every array that an engine returns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError
from m2kit.records import is_integer
from m2kit.runtime.images import floats_from_uint8, uint8_from_images
from m2kit.runtime.pictures import PILLOW_ERRORS, rgb_from_pil
from m2kit.runtime.saving import write_grid


def path_from(value: Any, what: str) -> Path:
    """A path, of text or a Path.

    Raises:
        InputError: Neither, or one that no file can have; named `what`.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise InputError(f"{what} must be text or a pathlib.Path, found {value!r:.60}")
    try:
        possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half of a character
        possible = False
    if not possible:
        raise InputError(f"{what} must be one that a file can have, found {str(value)!r:.60}")
    return Path(value)


def array_from(value: Any, what: str, dtype: type[object] | None = None) -> npt.NDArray[Any]:
    """What numpy can read, as an array: arrays, nested lists, and tensors of torch or lists of
    these, which are taken off the GPU and out of the graph of gradients; bfloat16 is widened.

    Raises:
        InputError: Nothing that numpy can read; named `what`.
    """
    try:
        if isinstance(value, (list, tuple)) and any(hasattr(item, "detach") for item in value):
            return np.stack([array_from(item, what, dtype) for item in value])
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if "bfloat16" in str(value.dtype) else value
            value = value.numpy()
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: numpy cannot read this {type(value).__name__}: {error}"
        ) from error


def images_from(images: Any, axes: int = 2) -> npt.NDArray[Any]:
    """Images as (B, 3, *size), with so many axes of size.

    Floats stay as they are; shape and range are for the caller to check. 8-bit pixels become
    float32 in [-1, 1]: (B, *size, 3) or (B, 3, *size) uint8, one PIL image, or a list of them.

    Raises:
        InputError: Nothing that numpy can read, or PIL images of several sizes.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, (list, tuple)) and any(isinstance(i, Image.Image) for i in images):
        images = _pixels(images)
    array = array_from(images, "images")
    if array.dtype != np.uint8:
        return array
    if array.ndim == axes + 2 and array.shape[-1] == 3:
        array = np.moveaxis(array, -1, 1)
    return floats_from_uint8(array)


def _pixels(images: Any) -> npt.NDArray[np.uint8]:
    if not all(isinstance(image, Image.Image) for image in images):
        raise InputError("images must be of one kind: PIL images, or arrays")
    try:
        images = [rgb_from_pil(image) for image in images]
    except PILLOW_ERRORS as error:  # of a file that PIL has only begun to read
        raise InputError(f"images: PIL cannot read one of them: {error}") from error
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sizes)
        raise InputError(f"images of one call must have one size, found {found}; resize them")
    return np.stack([np.asarray(image) for image in images])


def to_uint8(images: Any) -> npt.NDArray[np.uint8]:
    """Images (B, 3, H, W), floats in [-1, 1] as `Engine.decode` returns, as (B, H, W, 3) uint8;
    clips (B, 3, T, H, W) as (B, T, H, W, 3).

    Pixels are made as in the official code: 255 * (x + 1) / 2, clipped to 0..255 and truncated.

    Raises:
        InputError: Not floats of that shape, or NaN or Inf among them.
    """
    return uint8_from_images(_floats(images, clips=True))


def to_pil(images: Any) -> list[Image.Image]:
    """Images (B, 3, H, W), floats in [-1, 1], as B PIL images in RGB; errors as for `to_uint8`."""
    return [Image.fromarray(pixels) for pixels in uint8_from_images(_floats(images))]


def save_images(path: str | Path, images: Any, *, columns: int = 8) -> None:
    """Write images into one file, a grid row by row; it appears whole or not at all.

    Args:
        path: The file, such as samples.png.
        images: (B, 3, H, W) floats in [-1, 1] as `Engine.decode` returns.
        columns: Images in a row, from 1.

    Raises:
        InputError: No such images, or no such number of columns.
        FolderError: A name that no image file has, or the file cannot be written.
    """
    if not is_integer(columns) or columns < 1:
        raise InputError(f"columns must be a whole number from 1, found {columns!r:.40}")
    write_grid(path_from(path, "path"), _floats(images), columns=columns)


def _floats(images: Any, *, clips: bool = False) -> npt.NDArray[np.float32]:
    array = array_from(images, "images")
    if array.ndim not in ((4, 5) if clips else (4,)) or array.shape[1] != 3 or not array.size:
        shape = "(B, 3, H, W)" + (" or (B, 3, T, H, W)" if clips else "")
        raise InputError(f"images must have shape {shape}, found {array.shape}")
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise InputError(f"images must be finite floats in [-1, 1], found {array.dtype}")
    return array.astype(np.float32)
