"""Token layout: how K sub-tokens and the +1/-1 codes of one position translate into each other.

Sub-token k is the code channels sum(bits[:k]) up to sum(bits[:k+1]); bit_order says whether the
first of those channels is the lowest bit ("lsb", the released models) or the highest ("msb",
V0.1). Exact for up to 62 bits: integers only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError


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
        tokens: (B, h, w, K) int64, sub-token k in [0, 2^bits[k]).
        bits: Bits of each sub-token.
        bit_order: "lsb" or "msb".

    Returns:
        (B, Z, h, w) float32 in {-1, +1}.
    """
    weights = np.asarray(bit_weights(bits, bit_order), np.int64)
    owner = np.repeat(np.arange(len(bits)), bits)  # (Z) sub-token of each code channel
    ones = (tokens[..., owner] & weights) != 0  # (B, h, w, Z)
    codes = np.where(ones, np.float32(1), np.float32(-1))
    return np.ascontiguousarray(codes.transpose(0, 3, 1, 2))


def tokens_from_codes(
    codes: npt.NDArray[np.floating], bits: tuple[int, ...], bit_order: str
) -> npt.NDArray[np.int64]:
    """The tokens of codes: the inverse of `codes_from_tokens`; a code is 1 where it is > 0.

    Args:
        codes: (B, Z, h, w), any float.
        bits: Bits of each sub-token.
        bit_order: "lsb" or "msb".

    Returns:
        (B, h, w, K) int64.
    """
    weights = np.asarray(bit_weights(bits, bit_order), np.int64)
    valued = (codes > 0).transpose(0, 2, 3, 1) * weights  # (B, h, w, Z)
    starts = np.concatenate(([0], np.cumsum(bits)[:-1]))
    return np.add.reduceat(valued, starts, axis=-1)


def check_tokens(tokens: npt.ArrayLike, bits: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The tokens as (B, h, w, K) int64, checked.

    Raises:
        InputError: Wrong rank, wrong K, not integers, or an id outside its sub-vocabulary.
    """
    array = np.asarray(tokens)
    right_shape = array.ndim == 4 and array.shape[-1] == len(bits) and array.size > 0
    if not right_shape or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"tokens must be integers of shape (B, h, w, {len(bits)}), "
            f"found {array.dtype} of shape {array.shape}"
        )
    for k, count in enumerate(bits):
        ids = array[..., k]
        if int(ids.min()) < 0 or int(ids.max()) >= 2**count:
            raise InputError(
                f"sub-token {k} has {count} bits, so its ids lie in 0..{2**count - 1}; "
                f"found {int(ids.min())}..{int(ids.max())}"
            )
    return array.astype(np.int64)
