"""Guidance, filters and draws: from logits to ids.

Order per sub-token k: guidance u + s_k (c - u), / temperature_k, top-k (ties kept), top-p (the
token that crosses p is kept), softmax, draw. This is the order of the official sampler, with any
mix of scales (there, 1 crashes). Randomness is a function of (seed, image number, position,
sub-token) alone, so an image does not depend on its batch.

`probabilities` and `draw` say which id that is. `drawn` finds the same one without sorting and
without adding up token after token (docs/performance.md has how much faster that is).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.sampling import ResolvedSampling

_MANY = 4096  # logits: fewer are as fast all in order
_BLOCK = 64  # tokens, added up together
_BINS = 1024  # of logits that are about as large
_DOUBT = 1e-8  # of a total; sums of the same float64 numbers in another order differ by far less


class Space:
    """Arrays that are used again for every draw. Fresh ones come from the system page by page: at
    32 images and 4096 tokens that can cost four times what is computed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def of(self, name: str, shape: tuple[int, ...], dtype: type[Any]) -> npt.NDArray[Any]:
        """The array of a name, with what happens to be in it."""
        size, found = math.prod(shape), self._arrays.get(name)
        if found is None or found.size < size:
            found = self._arrays[name] = np.empty(size, dtype)
        return found[:size].reshape(shape)


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


def drawn(
    logits: npt.NDArray[np.float32],
    uniform: npt.NDArray[np.float64],
    *,
    temperature: npt.NDArray[np.float64],
    top_k: int,
    top_p: float,
    space: Space,
) -> npt.NDArray[np.int64]:
    """(B, V) float32 logits and (B) uniforms in [0, 1) -> (B) int64: exactly what `draw` takes of
    `probabilities`, with temperatures (B, 1).

    Sums are of the very same numbers, and only their order is another; a row where that could
    matter, and one with NaN, is left to these two.
    """
    if logits.size < _MANY:
        probability = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        return draw(probability, uniform)
    shape, sure = logits.shape, np.array(True)
    below = space.of("below", shape, np.float64)
    np.copyto(below, logits)
    if (temperature != 1).any():
        below /= temperature
    below -= below.max(axis=-1, keepdims=True)
    weights = np.exp(below, out=space.of("weights", shape, np.float64))
    if 0 < top_k < shape[-1]:
        ranked = space.of("ranked", shape, np.float32)
        np.copyto(ranked, logits)
        ranked.partition(shape[-1] - top_k, axis=-1)
        weights *= logits >= ranked[:, -top_k, None]
    if top_p < 1:
        kept, sure = _largest(below, weights, top_p, space)
        weights *= kept
    ids, _, found = _crossing(weights, uniform)
    rest = np.flatnonzero(~(sure & found))
    if len(rest):
        probability = probabilities(
            logits[rest], temperature=temperature[rest], top_k=top_k, top_p=top_p
        )
        ids[rest] = draw(probability, uniform[rest])
    return ids


def _crossing(
    amounts: npt.NDArray[np.float64], share: float | npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Where the sum of amounts (B, V), from the first on, exceeds a share of all of them, one or
    (B).

    Returns:
        (B) places; (B) sums before them; (B) whether that is beyond doubt.
    """
    rows, missing = np.arange(len(amounts)), -amounts.shape[-1] % _BLOCK
    if missing:
        amounts = np.pad(amounts, [(0, 0), (0, missing)])
    blocks = amounts.reshape(len(rows), -1, _BLOCK)
    ends = np.einsum("rbi->rb", blocks).cumsum(axis=-1)
    total = ends[:, -1]
    target = share * total
    block = np.minimum((ends <= target[:, None]).sum(axis=-1), ends.shape[-1] - 1)
    chosen = blocks[rows, block]
    sums = chosen.cumsum(axis=-1)
    sums += np.where(block, ends[rows, block - 1], 0)[:, None]
    place = np.minimum((sums <= target[:, None]).sum(axis=-1), _BLOCK - 1)
    after = sums[rows, place]
    before = after - chosen[rows, place]
    sure = np.minimum(after - target, target - before) > _DOUBT * total
    return block * _BLOCK + place, before, sure


def _largest(
    below: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], share: float, space: Space
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which tokens (B, V) are kept of those in falling order: all until their weights exceed a
    share; and (B) whether that is beyond doubt.

    Tokens are put into bins by their logits, less the largest one; only the bin in which the share
    is reached is sorted.
    """
    (count, size), span = below.shape, -below.min(axis=-1, keepdims=True)
    if not np.isfinite(span).all():
        return np.array(True), np.array(False)
    first = _BINS * np.arange(count)[:, None]  # of each row
    places = space.of("places", below.shape, np.float64)
    np.multiply(below, (1 - _BINS) / np.maximum(span, 1e-3), out=places)
    places += first
    bins = space.of("bins", below.shape, np.intp)
    np.copyto(bins, places, casting="unsafe")  # rounds down
    mass = np.asarray(np.bincount(bins.ravel(), weights.ravel(), count * _BINS), np.float64)
    mass = mass.reshape(count, _BINS)
    last, start, sure = _crossing(mass, share)
    last = last[:, None] + first
    kept, at = bins < last, np.flatnonzero(bins == last)
    row = at // size
    at = at[np.lexsort((-below.ravel()[at], row))]  # of equal ones the lowest id comes first
    total = mass.sum(axis=-1)
    own = weights.ravel()[at] / total[row]
    sums = np.bincount(row, own, count)
    before = own.cumsum() - own - (sums.cumsum() - sums - start / total)[row]
    kept.ravel()[at[before <= share]] = True
    sure[row[np.abs(before - share) <= _DOUBT]] = False
    return kept, sure


def guide(
    logits: npt.NDArray[np.float32],
    images: int,
    scale: float,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Classifier-free guidance u + s (c - u): (R, V) with R = 2B or B -> (B, V) float32, in `out`
    where that is given and anything is computed.

    Rows 0..B-1 are conditional and B..2B-1 unconditional.
    """
    conditional = logits[:images]
    if scale == 1 or len(logits) == images:
        return conditional
    unconditional = logits[images:]
    guided = np.subtract(conditional, unconditional, out=out)
    guided *= np.float32(scale)
    guided += unconditional
    return guided


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
        self._spaces = [Space() for _ in range(self._sub_tokens)]
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
            ids[images] = drawn(
                guided[images],
                uniform[images],
                temperature=temperature[images],
                top_k=sampling.top_k[k],
                top_p=sampling.top_p[k],
                space=self._spaces[k],
            )
        return ids

    def _guided(self, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(R, V_k) logits -> (B, V_k), each image's by its own scale, exactly as by `guide`."""
        count, scale = len(self._samplings), self._scales[k]
        guided = self._spaces[k].of("guided", (count, logits.shape[-1]), np.float32)
        if len(logits) in (count, 2 * count) and (scale == scale[0]).all():
            return guide(logits, count, self._samplings[0].guidance[k], guided)
        conditional, unconditional = logits[:count], logits[self._unconditional]
        np.subtract(conditional, unconditional, out=guided)
        guided *= scale
        guided += unconditional
        np.copyto(guided, conditional, where=scale == 1)
        return guided


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
