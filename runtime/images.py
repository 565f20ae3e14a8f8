"""Images as float arrays: from picture files, to grids, framed, compared.

Pixel values follow the official code: in, x / 127.5 - 1; out, 255 * (x + 1) / 2 clipped to 0..255
and truncated (not rounded) to uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError
from m2kit.outputs import check_output
from m2kit.runtime.pictures import (
    MOST_PIXELS,
    WHITE,
    WRITTEN,
    Colour,
    most_side,
    read_picture,
    write_picture,
)

_GAP = 2  # pixels


def read_image(path: Path, background: Colour = WHITE) -> npt.NDArray[np.float32]:
    """A picture file as (3, H, W) float32 in [-1, 1]; rule and errors are `read_picture`'s."""
    pixels = np.asarray(read_picture(path, background))
    return (pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)


def read_images(paths: Sequence[Path], background: Colour = WHITE) -> npt.NDArray[np.float32]:
    """Picture files of one size as (B, 3, H, W) float32 in [-1, 1].

    Raises:
        InputError: As `read_picture`, or pictures of different sizes.
    """
    images: list[npt.NDArray[np.float32]] = []
    for path in paths:
        image = read_image(path, background)
        if images and image.shape != images[0].shape:
            raise InputError(
                f"images of one call must have one size: {paths[0]} has "
                f"{images[0].shape[1]} x {images[0].shape[2]}, {path} has "
                f"{image.shape[1]} x {image.shape[2]}"
            )
        images.append(image)
    return np.stack(images)


def padded(images: npt.NDArray[np.float32], strides: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(B, 3, *size) framed in mid-grey (0) up to multiples of `strides`, as the official
    evaluation does.

    The smaller half of what is missing goes in front: above and to the left.
    """
    missing = [-n % stride for n, stride in zip(images.shape[2:], strides, strict=True)]
    frame = [(count // 2, count - count // 2) for count in missing]
    return np.pad(images, [(0, 0), (0, 0), *frame])


def cropped(images: npt.NDArray[np.float32], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The inverse of `padded`: (B, 3, *padded size) cut back to (B, 3, *size)."""
    starts = [(a - b) // 2 for a, b in zip(images.shape[2:], size, strict=True)]
    inner = (slice(start, start + n) for start, n in zip(starts, size, strict=True))
    return images[tuple([slice(None), slice(None), *inner])]


def uint8_from_images(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(B, 3, H, W) float32 in [-1, 1] as (B, H, W, 3) uint8."""
    scaled = np.clip(255 * (images + 1) / 2, 0, 255)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def write_grid(
    path: Path, images: npt.NDArray[np.float32], *, columns: int, scale: int = 1
) -> None:
    """Write images (B, 3, H, W) float32 in [-1, 1] as one grid; the rest as `write_pixels`."""
    write_pixels(path, uint8_from_images(images), columns=columns, scale=scale)


def write_pixels(
    path: Path, pixels: npt.NDArray[np.uint8], *, columns: int, scale: int = 1
) -> None:
    """Write images (B, H, W, 3) uint8 as one grid, row by row: so many columns, each pixel enlarged
    by a whole scale. The file, of a suffix of pictures.WRITTEN, is written whole or not at all.

    Raises:
        InputError: A grid that no file of this kind holds.
    """
    check_output(path, *WRITTEN)
    check_grid(path, len(pixels), pixels.shape[1:3], columns=columns, scale=scale)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    size = _grid_size(count, (height, width), columns)
    grid = np.full((*size, 3), 255, dtype=np.uint8)
    for index in range(count):
        top, left = (index // columns) * (height + _GAP), (index % columns) * (width + _GAP)
        grid[top : top + height, left : left + width] = pixels[index]
    write_picture(path, Image.fromarray(grid))


def check_grid(
    path: Path, count: int, size: Sequence[int], *, columns: int, scale: int = 1
) -> None:
    """Refuse a grid of images of size (H, W) that would be too large, before they are made.

    Raises:
        InputError: Of more pixels than a picture may have, or than its format has along a side.
    """
    height, width = _grid_size(count, [scale * n for n in size], min(columns, count))
    if height * width > MOST_PIXELS or max(height, width) > most_side(path):
        raise InputError(
            f"a grid of {count:,} images would have {height} x {width} pixels; {path.suffix} holds "
            f"{MOST_PIXELS:,}, {most_side(path):,} along a side: take fewer images or other "
            "columns, or write each into a folder",
            option="-o NAME, without suffix",
        )


def _grid_size(count: int, size: Sequence[int], columns: int) -> tuple[int, int]:
    height, width = size
    rows = -(-count // columns)
    return rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP


def psnr(images: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB: the mean over images, on truncated uint8 pixels."""
    a = uint8_from_images(images).astype(np.float64)
    b = uint8_from_images(others).astype(np.float64)
    error = np.maximum(((a - b) ** 2).mean(axis=(1, 2, 3)), 1e-10)
    return float((10 * np.log10(255.0**2 / error)).mean())
