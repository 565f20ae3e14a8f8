"""Guidance, filters and draws: from logits to ids.

Order per sub-token k: guidance u + s_k (c - u), / temperature_k, top-k (ties kept), top-p (the
token that crosses p is kept), softmax, draw. This is the order of the official sampler, with any
mix of scales (there, 1 crashes). Randomness is a function of (seed, image number, position,
sub-token) alone, so an image does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError

PerSubToken = float | Sequence[float] | None
DEFAULTS: dict[str, float] = {"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How ids are drawn. None means the model's own default.

    Attributes:
        seed: 0 <= seed < 2^64.
        guidance: Classifier-free guidance scale in 0..10000; one number, or one per sub-token.
            1 is off.
        temperature: Divides the logits; in 0.001..10000.
        top_k: Keep the k largest logits, 0 for all.
        top_p: Keep the smallest set of tokens whose probability exceeds p, 1 for all.
        greedy: Take the arg max instead of drawing.
    """

    seed: int = 0
    guidance: PerSubToken = None
    temperature: PerSubToken = None
    top_k: int | Sequence[int] | None = None
    top_p: PerSubToken = None
    greedy: bool = False

    def resolve(self, sub_tokens: int, defaults: Mapping[str, Any]) -> ResolvedSampling:
        """The same with one value per sub-token and nothing left open.

        Args:
            sub_tokens: K.
            defaults: The model's own values for guidance, temperature, top_k, top_p.

        Raises:
            InputError: A value out of range, or a list of the wrong length.
        """
        values = {}
        for name, fallback in DEFAULTS.items():
            value = getattr(self, name)
            if value is None:
                value = defaults.get(name, fallback)
            values[name] = _per_sub_token(name, value, sub_tokens)
        if not is_integer(self.seed) or not 0 <= self.seed < 2**64:
            raise InputError(f"seed must be a whole number in 0..2^64-1, found {self.seed!r}")
        return ResolvedSampling(seed=self.seed, greedy=self.greedy, **values)


def own_sampling(options: Mapping[str, Any], sub_tokens: int) -> dict[str, list[Any]]:
    """A model's own guidance, temperature, top_k and top_p, K values each, from some of them.

    Raises:
        InputError: A value out of range, or a list of the wrong length.
    """
    resolved = Sampling(**options).resolve(sub_tokens, {})
    return {name: list(getattr(resolved, name)) for name in DEFAULTS}


@dataclass(frozen=True, slots=True)
class ResolvedSampling:
    """A Sampling with one value per sub-token; built by `Sampling.resolve`."""

    seed: int
    greedy: bool
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]

    @property
    def guided(self) -> bool:
        """Whether unconditional rows are needed at all."""
        return any(scale != 1 for scale in self.guidance)


_RANGES = {  # lowest, highest, in words; a temperature below 1e-3 only overflows: use greedy
    "guidance": (0.0, 1e4, "a number in 0..10000"),
    "temperature": (1e-3, 1e4, "a number in 0.001..10000"),
    "top_k": (0, 2**62, "a whole number >= 0"),
    "top_p": (1e-12, 1.0, "a number above 0, up to 1"),
}


def _per_sub_token(name: str, value: Any, sub_tokens: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else (value,) * sub_tokens
    if len(values) != sub_tokens:
        raise InputError(
            f"{name} takes one value, or one for each of the {sub_tokens} sub-tokens; "
            f"found {len(values)}"
        )
    lowest, highest, expected = _RANGES[name]
    for item in values:
        whole = is_integer(item)
        number = whole or (name != "top_k" and isinstance(item, (float, np.floating)))
        if not number or not lowest <= item <= highest:
            raise InputError(f"{name} must be {expected}, found {item!r}")
    return tuple(int(v) if name == "top_k" else float(v) for v in values)


def uniforms(
    seed: int, image_numbers: npt.NDArray[np.uint64], draws: int
) -> npt.NDArray[np.float64]:
    """The uniforms of each image: position-major, sub-token-minor.

    Args:
        seed: 0 <= seed < 2^64.
        image_numbers: (B) uint64.
        draws: N * K.

    Returns:
        (B, draws) float64 in [0, 1), multiples of 2^-53: Philox4x64-10 under the key
        (seed, image number), whose raw stream numpy keeps stable across versions.
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
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return result


def draw(
    probability: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The first id whose cumulative probability exceeds u times the total.

    Args:
        probability: (B, V), ids ascending; need not be normalised.
        uniform: (B) in [0, 1).

    Returns:
        (B) int64. u * total < total in float64 for every u <= 1 - 2^-53, so an id always exists.
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
    mixed: npt.NDArray[np.float32] = unconditional + np.float32(scale) * (
        conditional - unconditional
    )
    return mixed


class Sampler:
    """Draws the ids of a batch of images, sub-token by sub-token."""

    def __init__(
        self,
        sampling: ResolvedSampling,
        image_numbers: npt.NDArray[np.uint64],
        positions: int,
    ) -> None:
        """Prepare the uniforms of every draw (none for greedy decoding)."""
        self.sampling = sampling
        self.images = len(image_numbers)
        self._sub_tokens = len(sampling.guidance)
        draws = 0 if sampling.greedy else positions * self._sub_tokens
        self._uniforms = uniforms(sampling.seed, image_numbers, draws)

    def draw(self, position: int, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(R, V_k) logits of sub-token k -> (B) ids."""
        sampling = self.sampling
        guided = guide(logits, self.images, sampling.guidance[k])
        if sampling.greedy:
            return np.asarray(guided.argmax(axis=-1), dtype=np.int64)
        probability = probabilities(
            guided,
            temperature=sampling.temperature[k],
            top_k=sampling.top_k[k],
            top_p=sampling.top_p[k],
        )
        return draw(probability, self._uniforms[:, position * self._sub_tokens + k])


def check_image_numbers(numbers: npt.ArrayLike | None, images: int) -> npt.NDArray[np.uint64]:
    """The image numbers as (B) uint64, 0..B-1 by default.

    Raises:
        InputError: Not B integers in 0..2^64-1.
    """
    if numbers is None:
        return np.arange(images, dtype=np.uint64)
    values = np.asarray(numbers, dtype=object).ravel()
    if len(values) != images or not all(is_integer(n) and 0 <= n < 2**64 for n in values):
        raise InputError(
            f"image_numbers must be {images} integers in 0..2^64-1, found {values[:5].tolist()}"
        )
    return np.array([int(number) for number in values], dtype=np.uint64)


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number of Python or numpy (True and False are not)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
