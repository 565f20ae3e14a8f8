"""Measures of a model's tokens and images, whatever these show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Pixels = npt.NDArray[np.uint8]
NEAR = 12.0  # grey levels
_SIDE = 32  # of small pictures
_AT_ONCE = 500  # pictures


def share_of_copies(tokens: npt.NDArray[np.int64], training_tokens: npt.NDArray[np.int64]) -> float:
    """Share of (B, h, w, K) tokens that occur, whole, among training tokens (n, h, w, K)."""
    known = {image.tobytes() for image in training_tokens}
    return sum(image.tobytes() in known for image in tokens) / len(tokens)


def small(pixels: Pixels) -> Pixels:
    """Pictures (B, H, W, 3) uint8 of at most 32 x 32 pixels: means over areas of larger ones."""
    height, width = pixels.shape[1:3]
    side = min(_SIDE, height), min(_SIDE, width)
    if side == (height, width):
        return pixels
    levels = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    means = functional.adaptive_avg_pool2d(levels, side).round().to(torch.uint8)
    return means.permute(0, 2, 3, 1).numpy()


def near_copies(images: Pixels, training: Pixels, *, within: float = NEAR) -> float:
    """Share of images that are nearly a training image, or its mirror image.

    Args:
        images: (B, H, W, 3) uint8, whole or `small`.
        training: (n, H, W, 3) uint8, likewise.
        within: Greatest root mean square of the differences, in grey levels.
    """
    known = training.reshape(len(training), -1).astype(np.float32)
    squares = np.einsum("ij,ij->i", known, known)
    near = 0
    for start in range(0, len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        ways = (_least_distances(way, known, squares) for way in (part, part[:, :, ::-1]))
        near += int((np.minimum(*ways) / known.shape[1] <= within**2).sum())
    return near / len(images)


def _least_distances(
    images: Pixels, known: npt.NDArray[np.float32], squares: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(B), squared, from images (B, H, W, 3) to the nearest row of `known` (n, D)."""
    asked = images.reshape(len(images), -1).astype(np.float32)
    own = np.einsum("ij,ij->i", asked, asked)
    distances = own[:, None] + squares - 2 * asked @ known.T
    least: npt.NDArray[np.float32] = distances.min(1)
    return least
