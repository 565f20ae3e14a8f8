"""Token layout of Lookup-Free Quantization: a code channel is a sign, a sub-token a group of bits.

Sub-token k is the code channels sum(bits[:k]) up to sum(bits[:k+1]); bit_order says whether the
first of those channels is the lowest bit ("lsb", the released models) or the highest ("msb",
V0.1). Exact for up to 62 bits: integers only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2kit.errors import SpecError

BIT_ORDERS = ("lsb", "msb")
MOST_BITS = 62  # of a code: its flat index must fit into int64


def bits_of(vocabularies: tuple[int, ...]) -> tuple[int, ...]:
    """Bits of each sub-token, from the sizes of the sub-vocabularies.

    Raises:
        SpecError: One is no power of two from 2 on.
    """
    odd = [size for size in vocabularies if size < 2 or size & (size - 1)]
    if odd:
        raise SpecError(
            f"a sub-token of sign bits has a power of two of ids, found sub-vocabularies of {odd}"
        )
    return tuple(size.bit_length() - 1 for size in vocabularies)


def bit_weights(bits: tuple[int, ...], bit_order: str) -> tuple[int, ...]:
    """The value 2^i of each code channel inside its sub-token, for all Z channels."""
    weights: list[int] = []
    for count in bits:
        exponents = range(count) if bit_order == "lsb" else range(count - 1, -1, -1)
        weights.extend(2**exponent for exponent in exponents)
    return tuple(weights)


def codes_from_tokens(
    tokens: npt.NDArray[np.int64], bits: tuple[int, ...], bit_order: str
) -> npt.NDArray[np.float32]:
    """The codes of tokens.

    Args:
        tokens: (B, *grid, K) int64, sub-token k in [0, 2^bits[k]).
        bits: Bits of each sub-token.
        bit_order: "lsb" or "msb".

    Returns:
        (B, Z, *grid) float32 in {-1, +1}.
    """
    weights = np.asarray(bit_weights(bits, bit_order), np.int64)
    owner = np.repeat(np.arange(len(bits)), bits)  # (Z) sub-token of each code channel
    ones = (tokens[..., owner] & weights) != 0  # (B, *grid, Z)
    codes = np.where(ones, np.float32(1), np.float32(-1))
    return np.ascontiguousarray(np.moveaxis(codes, -1, 1))


def tokens_from_codes(
    codes: npt.NDArray[np.floating], bits: tuple[int, ...], bit_order: str
) -> npt.NDArray[np.int64]:
    """The tokens of codes, the inverse of `codes_from_tokens`: (B, Z, *grid), any float, where a
    code is 1 if it is > 0 -> (B, *grid, K) int64."""
    weights = np.asarray(bit_weights(bits, bit_order), np.int64)
    valued = np.moveaxis(codes > 0, 1, -1) * weights  # (B, *grid, Z)
    starts = np.concatenate(([0], np.cumsum(bits)[:-1]))
    return np.add.reduceat(valued, starts, axis=-1)
