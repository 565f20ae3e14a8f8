"""How ids are drawn, as records: what a user asks for, what a model has as its own, and the two
resolved into one value per sub-token. The drawing itself is m2kit.runtime.sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2kit.errors import InputError
from m2kit.records import is_integer

PerSubToken = float | Sequence[float] | None
OFF = {"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # neither guides nor filters


@dataclass(frozen=True, slots=True)
class Sampling:
    """How ids are drawn. None means the model's own default. Every value is checked at once:
    InputError names the one out of range.

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

    def __post_init__(self) -> None:
        """Refuse what no model takes."""
        for name in OFF:
            if getattr(self, name) is not None:
                _checked(name, getattr(self, name))
        if not is_integer(self.seed) or not 0 <= self.seed < 2**64:
            raise InputError(f"seed must be a whole number in 0..2^64-1, found {self.seed!r:.60}")
        if not isinstance(self.greedy, (bool, np.bool_)):
            raise InputError(f"greedy must be True or False, found {self.greedy!r:.60}")

    def resolve(self, sub_tokens: int, defaults: SamplingDefaults | None) -> ResolvedSampling:
        """The same with one value per sub-token and nothing left open.

        Args:
            sub_tokens: K.
            defaults: The model's own values; None is no guidance and no filter.

        Raises:
            InputError: A list of the wrong length.
        """
        values = {}
        for name, fallback in OFF.items():
            value = getattr(self, name)
            if value is None:
                value = getattr(defaults, name) if defaults else fallback
            values[name] = _per_sub_token(name, value, sub_tokens)
        return ResolvedSampling(seed=int(self.seed), greedy=bool(self.greedy), **values)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """A model's own guidance, temperature, top_k and top_p, one value per sub-token."""

    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in OFF:
            _per_sub_token(name, getattr(self, name), len(self.guidance))

    @classmethod
    def of(cls, options: Mapping[str, Any], sub_tokens: int) -> SamplingDefaults:
        """K values each, from some of the options.

        Raises:
            InputError: A value out of range, or a list of the wrong length.
        """
        given = (_per_sub_token(n, options.get(n, off), sub_tokens) for n, off in OFF.items())
        return cls(*given)


@dataclass(frozen=True, slots=True)
class ResolvedSampling(SamplingDefaults):
    """A Sampling with one value per sub-token; built by `Sampling.resolve`."""

    seed: int
    greedy: bool

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
    values = _checked(name, value)
    if not _is_list(value):
        return values * sub_tokens
    if len(values) != sub_tokens:
        raise InputError(
            f"{name} takes one value, or one for each of the {sub_tokens} sub-tokens; "
            f"found {len(values)}"
        )
    return values


def _checked(name: str, value: Any) -> tuple[Any, ...]:
    """The value or values, as Python's own numbers."""
    lowest, highest, expected = _RANGES[name]
    values = tuple(value) if _is_list(value) else (value,)
    values = tuple(v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else v for v in values)
    for item in values:
        whole = is_integer(item)
        number = whole or (name != "top_k" and isinstance(item, (float, np.floating)))
        if not number or not lowest <= item <= highest:
            raise InputError(f"{name} must be {expected}, found {item!r:.60}")
    if not values:
        raise InputError(f"{name} must be {expected}, or one for each sub-token, found none")
    return tuple(int(v) if name == "top_k" else float(v) for v in values)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
