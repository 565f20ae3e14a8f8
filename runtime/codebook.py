"""How a model uses its codebook: which codes and which bits of them, over many images' tokens.

Only codes that occur are kept, by their numbers: memory grows with them, and not with the 2^Z of
the codebook, be it of 14, 18 or 60 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.families.sign_bits import bits_of, codes_from_tokens

_MOST_CODES = 2**62  # their numbers are int64
_KEPT_APART = 2**20  # numbers of codes, at least, before those of several batches are merged
_PAIRS = 5
_IMAGES = 256  # whose bits are spread out at once


@dataclass(frozen=True, slots=True)
class BitPair:
    """Two bits, code channels counted from 0, and the correlation of their signs, -1..1."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True, slots=True)
class CodebookReport:
    """What a codebook's use comes to.

    Attributes:
        tokens: How many were seen.
        codes: Size of the codebook, 2^Z where codes are signs.
        used: Codes that were seen.
        expected_used: Codes that so many tokens would show if all were equally likely.
        perplexity: exp of the entropy of the codes' shares: as many equally likely codes would have
            it.
        ones: (Z) share of tokens whose bit (code channel) is +1, in order; 0.5 is balanced. Empty
            where codes are no signs, as are the next two.
        dead_bits: Bits that never change, counted from 0.
        correlated_bits: Of those that do, the pairs of largest correlation without its sign, five
            at most, the largest first.
    """

    tokens: int
    codes: int
    used: int
    expected_used: float
    perplexity: float
    ones: tuple[float, ...]
    dead_bits: tuple[int, ...]
    correlated_bits: tuple[BitPair, ...]

    @property
    def usage(self) -> float:
        """Share of the codes that were seen."""
        return self.used / self.codes

    def rows(self) -> dict[str, str]:
        """What a table shows of it."""
        rows = {
            "tokens": f"{self.tokens:,}",
            "codes used": f"{self.used:,} of {self.codes:,} ({self.usage:.2%}); "
            f"{self.expected_used:,.1f} if all were equally likely",
            "perplexity": f"{self.perplexity:,.1f}",
        }
        if not self.ones:
            return rows
        pairs = (f"{p.first} and {p.second} ({p.correlation:+.3f})" for p in self.correlated_bits)
        return rows | {
            "share of +1 of each bit": " ".join(f"{share:.3f}" for share in self.ones),
            "dead bits": self.dead_bits_text() or "none",
            "most correlated bits": ", ".join(pairs) or "none",
        }

    def dead_bits_text(self) -> str:
        """Their numbers and signs, "" where there are none."""
        signs = ((bit, "+1" if self.ones[bit] else "-1") for bit in self.dead_bits)
        return ", ".join(f"{bit} (always {sign})" for bit, sign in signs)


class CodebookCount:
    """Counts codes and bits of one batch of tokens after another.

    Args:
        vocabularies: (K) of the sub-tokens.
        bit_order: "lsb" or "msb", as the model's; "" where its sub-tokens are no bits.

    Raises:
        InputError: A codebook of more than 2^62 codes.
        SpecError: Sub-tokens that should be groups of sign bits, and are not.
    """

    def __init__(self, vocabularies: tuple[int, ...], bit_order: str) -> None:
        self._size = math.prod(vocabularies)
        if self._size > _MOST_CODES:
            raise InputError(f"expected a codebook of 2^62 codes at most, found {self._size:.3g}")
        self._bits = bits_of(vocabularies) if bit_order else ()
        self._order = bit_order
        self._places = np.cumprod([1, *vocabularies[:-1]], dtype=np.int64)
        self._numbers = [np.zeros(0, dtype=np.int64)]  # of codes, each once in an array
        self._times = [np.zeros(0, dtype=np.int64)]  # that they were seen
        channels = sum(self._bits)
        self._together = np.zeros((channels, channels), dtype=np.int64)  # +1 in both; own: in one

    def add(self, tokens: npt.NDArray[np.int64]) -> None:
        """Count tokens (B, *grid, K)."""
        numbers, times = np.unique((tokens * self._places).sum(-1), return_counts=True)
        self._numbers.append(numbers)
        self._times.append(times)
        if sum(map(len, self._numbers)) > max(_KEPT_APART, 2 * len(self._numbers[0])):
            self._merge()
        if self._bits:
            codes = codes_from_tokens(tokens, self._bits, self._order)
            ones = np.moveaxis(codes, 1, -1).reshape(-1, len(self._together)) > 0  # (T, Z)
            exact = ones.astype(np.float64)  # whole numbers, exact to 2^53
            self._together += (exact.T @ exact).astype(np.int64)

    def join(self, other: CodebookCount) -> None:
        """Add what another one has counted of the same codebook."""
        self._numbers += other._numbers
        self._times += other._times
        self._together += other._together
        self._merge()

    def arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """What was counted, to be kept; `restore` takes it back."""
        self._merge()
        return {"numbers": self._numbers[0], "times": self._times[0], "together": self._together}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Add what another one had counted of the same codebook, as `arrays` gave it."""
        self._numbers.append(arrays["numbers"])
        self._times.append(arrays["times"])
        self._together += arrays["together"]
        self._merge()

    def _merge(self) -> None:
        """Have each number once."""
        numbers, places = np.unique(np.concatenate(self._numbers), return_inverse=True)
        times = np.zeros(len(numbers), dtype=np.int64)
        np.add.at(times, places, np.concatenate(self._times))
        self._numbers, self._times = [numbers], [times]

    def report(self) -> CodebookReport:
        """What was counted.

        Raises:
            InputError: Nothing was.
        """
        self._merge()
        (times,), codes = self._times, self._size
        tokens = int(times.sum())
        if not tokens:
            raise InputError("a codebook report needs the tokens of one image at least")
        shares = times / tokens
        ones = np.diag(self._together) / tokens
        unseen = math.expm1(tokens * math.log1p(-1 / codes)) if codes > 1 else -1.0
        return CodebookReport(
            tokens=tokens,
            codes=codes,
            used=len(shares),
            expected_used=-codes * unseen,
            perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
            ones=tuple(ones.tolist()),
            dead_bits=tuple(np.flatnonzero((ones == 0) | (ones == 1)).tolist()),
            correlated_bits=_most_correlated(self._together / tokens),
        )


def report_of_tokens(
    tokens: npt.NDArray[np.int64], vocabularies: tuple[int, ...], bit_order: str
) -> CodebookReport:
    """How tokens (B, *grid, K), all at hand, use their codebook; errors as for CodebookCount."""
    count = CodebookCount(vocabularies, bit_order)
    for start in range(0, len(tokens), _IMAGES):
        count.add(tokens[start : start + _IMAGES])
    return count.report()


def _most_correlated(together: npt.NDArray[np.float64]) -> tuple[BitPair, ...]:
    """Pairs of bits, by the share of tokens in which both are +1 (Z, Z); its diagonal is one's."""
    ones = np.diag(together)
    deviation = np.sqrt(ones * (1 - ones))
    alive = np.flatnonzero(deviation)
    first, second = (alive[side] for side in np.triu_indices(len(alive), 1))
    covariance = together[first, second] - ones[first] * ones[second]
    correlation = covariance / (deviation[first] * deviation[second])
    strongest = np.argsort(-np.abs(correlation), kind="stable")[:_PAIRS]
    found = zip(first[strongest], second[strongest], correlation[strongest], strict=True)
    return tuple(BitPair(int(a), int(b), float(value)) for a, b, value in found)
