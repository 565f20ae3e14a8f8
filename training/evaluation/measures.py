"""Measures of a model's tokens, whatever its images show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def share_of_copies(tokens: npt.NDArray[np.int64], training_tokens: npt.NDArray[np.int64]) -> float:
    """Share of (B, h, w, K) tokens that occur, whole, among training tokens (n, h, w, K)."""
    known = {image.tobytes() for image in training_tokens}
    return sum(image.tobytes() in known for image in tokens) / len(tokens)


def codebook_usage(tokens: npt.NDArray[np.int64], bits: tuple[int, ...]) -> float:
    """Share of the 2^Z codes that occur in (n, h, w, K) tokens."""
    shifts = np.concatenate(([0], np.cumsum(bits)[:-1]))
    flat = (tokens << shifts).sum(axis=-1)
    return float(len(np.unique(flat)) / 2 ** sum(bits))
