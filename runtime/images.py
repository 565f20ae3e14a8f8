"""Images as float arrays: from picture files, framed, as pixels, compared.

Pixel values follow the official code: in, x / 127.5 - 1; out, 255 * (x + 1) / 2 clipped to 0..255
and truncated (not rounded) to uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.runtime.pictures import WHITE, Colour, read_picture


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


def psnr(images: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB: the mean over images, on truncated uint8 pixels."""
    a = uint8_from_images(images).astype(np.float64)
    b = uint8_from_images(others).astype(np.float64)
    error = np.maximum(((a - b) ** 2).mean(axis=(1, 2, 3)), 1e-10)
    return float((10 * np.log10(255.0**2 / error)).mean())
