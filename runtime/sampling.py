"""Guidance, filters and draws: from logits to ids.

Order per sub-token k: guidance u + s_k (c - u), / temperature_k, top-k (ties kept), top-p (the
token that crosses p is kept), softmax, draw. This is the order of the official sampler, with any
mix of scales (there, 1 crashes). Randomness is a function of (seed, image number, position,
sub-token) alone, so an image does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    logits: npt.NDArray[np.float32],
    *,
    temperature: float | npt.NDArray[np.float64],
    top_k: int,
    top_p: float,
) -> npt.NDArray[np.float64]:
    """(B, V) float32 logits -> (B, V) float64 probabilities after temperature, one or (B, 1), top-k
    and top-p."""
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
        self._sub_tokens = len(samplings[0].guidance)
        draws = positions * self._sub_tokens
        self._uniforms = np.concatenate(
            [
                uniforms(sampling.seed, image_numbers[i : i + 1], draws)
                for i, sampling in enumerate(samplings)
            ]
        )
        self._take(list(samplings))

    def keep(self, images: npt.NDArray[np.int64]) -> None:
        """Draw for these of the images alone from now on, in this order."""
        self._uniforms = self._uniforms[images]
        self._take([self._samplings[image] for image in images])

    def _take(self, samplings: list[ResolvedSampling]) -> None:
        """Lay the options of all images side by side."""
        self._samplings, count = samplings, len(samplings)
        guided = np.array([sampling.guided for sampling in samplings])
        self._unconditional = np.where(guided, count + np.cumsum(guided) - 1, np.arange(count))
        columns = range(self._sub_tokens)
        self._scales = [np.array([[s.guidance[k]] for s in samplings], np.float32) for k in columns]
        self._temperatures = [np.array([[s.temperature[k]] for s in samplings]) for k in columns]
        self._kinds = [_kinds(samplings, k) for k in columns]

    def draw(self, position: int, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(R, V_k) logits of sub-token k, of B images and then of the guided ones under no class
        -> (B) ids."""
        uniform = self._uniforms[:, position * self._sub_tokens + k]
        guided, temperature = self._guided(k, logits), self._temperatures[k]
        ids = np.empty(len(guided), np.int64)
        for sampling, images in self._kinds[k]:
            if sampling.greedy:
                ids[images] = guided[images].argmax(axis=-1)
                continue
            probability = probabilities(
                guided[images],
                temperature=temperature[images],
                top_k=sampling.top_k[k],
                top_p=sampling.top_p[k],
            )
            ids[images] = draw(probability, uniform[images])
        return ids

    def _guided(self, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(R, V_k) logits -> (B, V_k), each image's by its own scale, exactly as by `guide`."""
        count, scale = len(self._samplings), self._scales[k]
        if len(logits) in (count, 2 * count) and (scale == scale[0]).all():
            return guide(logits, count, self._samplings[0].guidance[k])
        conditional, unconditional = logits[:count], logits[self._unconditional]
        apart = unconditional + scale * (conditional - unconditional)
        return np.where(scale == 1, conditional, apart)


def _kinds(
    samplings: Sequence[ResolvedSampling], k: int
) -> list[tuple[ResolvedSampling, slice | npt.NDArray[np.int64]]]:
    """One of the images of each way to filter, and which these are."""
    members: dict[tuple[int, float, bool], list[int]] = {}
    for image, sampling in enumerate(samplings):
        members.setdefault((sampling.top_k[k], sampling.top_p[k], sampling.greedy), []).append(
            image
        )
    if len(members) == 1:
        return [(samplings[0], slice(None))]
    return [(samplings[images[0]], np.array(images)) for images in members.values()]
