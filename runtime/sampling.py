"""Guidance, filters and draws: from logits to ids.

Order per sub-token k: guidance u + s_k (c - u), / temperature_k, top-k (ties kept), top-p (the
token that crosses p is kept), softmax, draw. This is the order of the official sampler, with any
mix of scales (there, 1 crashes). Randomness is a function of (seed, image number, position,
sub-token) alone, so an image does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from m2kit.sampling import ResolvedSampling


def uniforms(
    seed: int, image_numbers: npt.NDArray[np.uint64], draws: int
) -> npt.NDArray[np.float64]:
    """The N * K uniforms of each image, position-major, sub-token-minor: (B, draws) float64 in
    [0, 1), multiples of 2^-53.

    They are Philox4x64-10 under the key (seed, image number), each in 0..2^64-1, whose raw stream
    numpy keeps stable across versions.
    """
    out = np.empty((len(image_numbers), draws))
    for row, number in enumerate(image_numbers):
        raw = np.random.Philox(key=np.array([seed, number], dtype=np.uint64)).random_raw(draws)
        out[row] = (raw >> np.uint64(11)) * 2.0**-53
    return out


def probabilities(
    logits: npt.NDArray[np.float32], *, temperature: float, top_k: int, top_p: float
) -> npt.NDArray[np.float64]:
    """(B, V) float32 logits -> (B, V) float64 probabilities after temperature, top-k and top-p."""
    scaled = logits.astype(np.float64) / temperature
    size = scaled.shape[-1]
    if 0 < top_k < size:
        kth = np.partition(scaled, size - top_k, axis=-1)[:, size - top_k, None]
        scaled[scaled < kth] = -np.inf  # ties with the k-th stay
    if top_p < 1:
        order = np.argsort(-scaled, axis=-1, kind="stable")
        descending = _softmax(np.take_along_axis(scaled, order, axis=-1))
        before = np.cumsum(descending, axis=-1) - descending
        drop = np.zeros_like(scaled, dtype=bool)
        np.put_along_axis(drop, order, before > top_p, axis=-1)
        scaled[drop] = -np.inf
    return _softmax(scaled)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def draw(
    probability: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """(B, V) probabilities, ids ascending, and (B) uniforms in [0, 1) -> (B) int64: the first id
    whose cumulative probability exceeds u times the total, which need not be 1.

    u * total < total in float64 for every u <= 1 - 2^-53, so an id always exists.
    """
    cumulative = np.cumsum(probability, axis=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    return np.asarray((cumulative <= threshold).sum(axis=-1), dtype=np.int64)


def guide(logits: npt.NDArray[np.float32], images: int, scale: float) -> npt.NDArray[np.float32]:
    """Classifier-free guidance u + s (c - u): (R, V) with R = 2B or B -> (B, V) float32.

    Rows 0..B-1 are conditional and B..2B-1 unconditional.
    """
    conditional = logits[:images]
    if scale == 1 or len(logits) == images:
        return conditional
    unconditional = logits[images:]
    return unconditional + np.float32(scale) * (conditional - unconditional)


class Sampler:
    """Draws the ids of a batch of images, sub-token by sub-token, each image by its own options."""

    def __init__(
        self,
        samplings: Sequence[ResolvedSampling],
        image_numbers: npt.NDArray[np.uint64],
        positions: int,
    ) -> None:
        """Prepare the uniforms of every draw of B images."""
        self._samplings, self._sub_tokens = list(samplings), len(samplings[0].guidance)
        draws = positions * self._sub_tokens
        self._uniforms = np.concatenate(
            [
                uniforms(sampling.seed, image_numbers[i : i + 1], draws)
                for i, sampling in enumerate(samplings)
            ]
        )
        self._groups = _groups(self._samplings)

    def keep(self, images: npt.NDArray[np.int64]) -> None:
        """Draw for these of the images alone from now on, in this order."""
        self._samplings = [self._samplings[image] for image in images]
        self._uniforms = self._uniforms[images]
        self._groups = _groups(self._samplings)

    def draw(self, position: int, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(R, V_k) logits of sub-token k, of B images and then of the guided ones under no class
        -> (B) ids."""
        uniform = self._uniforms[:, position * self._sub_tokens + k]
        if len(self._groups) == 1:
            ((sampling, images, _),) = self._groups
            return _drawn(sampling, k, logits, len(images), uniform)
        ids = np.empty(len(self._samplings), np.int64)
        for sampling, images, rows in self._groups:
            ids[images] = _drawn(sampling, k, logits[rows], len(images), uniform[images])
        return ids


Group = tuple[ResolvedSampling, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _groups(samplings: Sequence[ResolvedSampling]) -> list[Group]:
    """Images of the same options, but for the seed; and the rows of their logits."""
    members: dict[ResolvedSampling, list[int]] = {}
    unconditional = len(samplings)  # the next row of one
    row_of: dict[int, int] = {}
    for image, sampling in enumerate(samplings):
        members.setdefault(replace(sampling, seed=0), []).append(image)
        if sampling.guided:
            row_of[image], unconditional = unconditional, unconditional + 1
    groups = []
    for sampling, images in members.items():
        rows = images + [row_of[image] for image in images if image in row_of]
        groups.append((sampling, np.array(images), np.array(rows)))
    return groups


def _drawn(
    sampling: ResolvedSampling,
    k: int,
    logits: npt.NDArray[np.float32],
    images: int,
    uniform: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """(B) ids of (R, V_k) logits and (B) uniforms, by one kind of options."""
    guided = guide(logits, images, sampling.guidance[k])
    if sampling.greedy:
        return np.asarray(guided.argmax(axis=-1), dtype=np.int64)
    probability = probabilities(
        guided,
        temperature=sampling.temperature[k],
        top_k=sampling.top_k[k],
        top_p=sampling.top_p[k],
    )
    return draw(probability, uniform)
