"""Images as float arrays: from pixels and to them, framed, compared.

Pixel values follow the official code: in, x / 127.5 - 1; out, 255 * (x + 1) / 2 clipped to 0..255
and truncated (not rounded) to uint8.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Rounding = Literal["truncate", "round"]  # how a value between two whole ones becomes one of them


def images_from_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(B, *size, 3) uint8 as (B, 3, *size) float32 in [-1, 1]."""
    return np.moveaxis(floats_from_uint8(pixels), -1, 1)


def floats_from_uint8(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pixels of any shape, uint8, as float32 in [-1, 1] of the same."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def padded_size(size: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The next multiples of `strides`."""
    return tuple(n + -n % stride for n, stride in zip(size, strides, strict=True))


def padded(images: npt.NDArray[np.float32], strides: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(B, 3, *size) framed in mid-grey (0) up to multiples of `strides`, as the official
    evaluation does.

    The smaller half of what is missing goes in front: above and to the left.
    """
    size = images.shape[2:]
    missing = [b - a for a, b in zip(size, padded_size(size, strides), strict=True)]
    frame = [(count // 2, count - count // 2) for count in missing]
    return np.pad(images, [(0, 0), (0, 0), *frame])


def cropped(images: npt.NDArray[np.float32], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The inverse of `padded`: (B, 3, *padded size) cut back to (B, 3, *size)."""
    starts = [(a - b) // 2 for a, b in zip(images.shape[2:], size, strict=True)]
    inner = (slice(start, start + n) for start, n in zip(starts, size, strict=True))
    return images[tuple([slice(None), slice(None), *inner])]


def uint8_from_images(
    images: npt.NDArray[np.float32], rule: Rounding = "truncate"
) -> npt.NDArray[np.uint8]:
    """(B, 3, *size) float32 in [-1, 1] as (B, *size, 3) uint8; `round` takes halves up, as LlamaGen
    and VAR write theirs (127.5 x + 128)."""
    scaled = 255 * (images + 1) / 2 + (0.5 if rule == "round" else 0)
    scaled = np.clip(scaled, 0, 255)
    return np.moveaxis(scaled.astype(np.uint8), 1, -1)


def psnr(images: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB: the mean over images, on truncated uint8 pixels."""
    a = uint8_from_images(images).astype(np.float64)
    b = uint8_from_images(others).astype(np.float64)
    error = np.maximum(((a - b) ** 2).mean(axis=(1, 2, 3)), 1e-10)
    return float((10 * np.log10(255.0**2 / error)).mean())
