"""Measures of a model's tokens and images, whatever these show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def share_of_copies(tokens: npt.NDArray[np.int64], training_tokens: npt.NDArray[np.int64]) -> float:
    """Share of (B, h, w, K) tokens that occur, whole, among training tokens (n, h, w, K)."""
    known = {image.tobytes() for image in training_tokens}
    return sum(image.tobytes() in known for image in tokens) / len(tokens)


def near_copies(
    images: npt.NDArray[np.uint8], training: npt.NDArray[np.uint8], *, within: float
) -> float:
    """Share of images that are nearly a training image, or its mirror image.

    Args:
        images: (B, H, W, 3) uint8.
        training: (n, H, W, 3) uint8.
        within: Greatest root mean square of the differences, in grey levels.
    """
    known = training.reshape(len(training), -1).astype(np.float32)
    known_squares = np.einsum("ij,ij->i", known, known)
    nearest = np.full(len(images), np.inf)
    for mirrored in (images, images[:, :, ::-1]):
        asked = mirrored.reshape(len(images), -1).astype(np.float32)
        squares = np.einsum("ij,ij->i", asked, asked)
        distances = squares[:, None] + known_squares - 2 * asked @ known.T
        nearest = np.minimum(nearest, distances.min(1))
    return float((nearest / known.shape[1] <= within**2).mean())
