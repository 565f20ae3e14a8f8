"""Measures of a model's tokens, whatever its images show."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def share_of_copies(tokens: npt.NDArray[np.int64], training_tokens: npt.NDArray[np.int64]) -> float:
    """Share of (B, h, w, K) tokens that occur, whole, among training tokens (n, h, w, K)."""
    known = {image.tobytes() for image in training_tokens}
    return sum(image.tobytes() in known for image in tokens) / len(tokens)


def codebook_usage(tokens: npt.NDArray[np.int64], vocabularies: tuple[int, ...]) -> float:
    """Share of the codes that occur in tokens (n, *grid, K)."""
    factors = np.concatenate(([1], np.cumprod(vocabularies)[:-1]))
    flat = (tokens * factors).sum(axis=-1)
    return len(np.unique(flat)) / math.prod(vocabularies)
