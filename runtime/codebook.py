"""How a model uses its codebook: which codes and which bits of them, over many images' tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.families.sign_bits import bits_of, codes_from_tokens

_MOST_BITS = 26  # of a codebook that is counted code by code: 512 MB


@dataclass(frozen=True, slots=True)
class CodebookReport:
    """What a codebook's use comes to.

    Attributes:
        tokens: How many were seen.
        codes: Size of the codebook, 2^Z.
        used: Codes that were seen.
        expected_used: Codes that so many tokens would show if all were equally likely.
        perplexity: exp of the entropy of the codes' shares: as many equally likely codes would have
            it.
        ones: (Z) share of tokens whose code channel is +1, in order; 0.5 is balanced.
        dead_bits: Code channels that never change, counted from 0.
        correlation: Largest correlation, without its sign, of two code channels that do.
        correlated_bits: These two.
    """

    tokens: int
    codes: int
    used: int
    expected_used: float
    perplexity: float
    ones: tuple[float, ...]
    dead_bits: tuple[int, ...]
    correlation: float
    correlated_bits: tuple[int, ...]


class CodebookCount:
    """Counts codes and bits of one batch of tokens after another.

    Args:
        vocabularies: (K) of the sub-tokens.
        bit_order: "lsb" or "msb", as the model's.

    Raises:
        InputError: A codebook of more than 2^26 codes.
        SpecError: Sub-tokens that are no groups of sign bits.
    """

    def __init__(self, vocabularies: tuple[int, ...], bit_order: str) -> None:
        self._bits, self._order = bits_of(vocabularies), bit_order
        channels = sum(self._bits)
        if channels > _MOST_BITS:
            raise InputError(
                f"expected a codebook of 2^{_MOST_BITS} codes at most, found 2^{channels}"
            )
        self._codes = np.zeros(2**channels, dtype=np.int64)
        self._together = np.zeros((channels, channels), dtype=np.int64)  # +1 in both; own: in one

    def add(self, tokens: npt.NDArray[np.int64]) -> None:
        """Count tokens (B, *grid, K)."""
        codes = codes_from_tokens(tokens, self._bits, self._order)
        ones = np.moveaxis(codes, 1, -1).reshape(-1, len(self._together)) > 0  # (T, Z)
        numbers = ones @ (1 << np.arange(len(self._together)))
        self._codes += np.bincount(numbers, minlength=len(self._codes))
        exact = ones.astype(np.float64)  # whole numbers, exact to 2^53
        self._together += (exact.T @ exact).astype(np.int64)

    def report(self) -> CodebookReport:
        """What was counted.

        Raises:
            InputError: Nothing was.
        """
        tokens, codes = int(self._codes.sum()), len(self._codes)
        if not tokens:
            raise InputError("a codebook report needs the tokens of one image at least")
        shares = self._codes[self._codes > 0] / tokens
        ones = np.diag(self._together) / tokens
        deviation = np.sqrt(ones * (1 - ones))
        alive = np.flatnonzero(deviation)
        covariance = self._together / tokens - np.outer(ones, ones)
        pairs = np.triu(np.abs(covariance[np.ix_(alive, alive)]), 1)
        pairs /= np.outer(deviation[alive], deviation[alive])
        row, column = divmod(int(pairs.argmax()), len(alive)) if len(alive) > 1 else (0, 0)
        return CodebookReport(
            tokens=tokens,
            codes=codes,
            used=len(shares),
            expected_used=-codes * math.expm1(tokens * math.log1p(-1 / codes)),
            perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
            ones=tuple(ones.tolist()),
            dead_bits=tuple(np.flatnonzero(deviation == 0).tolist()),
            correlation=float(pairs[row, column]) if len(alive) > 1 else 0.0,
            correlated_bits=(int(alive[row]), int(alive[column])) if len(alive) > 1 else (),
        )
