"""Tokens of any family: K sub-tokens at every latent position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError


def check_tokens(
    tokens: npt.ArrayLike, vocabularies: tuple[int, ...], axes: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """The tokens as (B, *grid, K) int64, checked.

    Args:
        tokens: What to check.
        vocabularies: V_k of each sub-token.
        axes: Names of the grid's axes, such as ("h", "w").

    Raises:
        InputError: Wrong rank, wrong K, not integers, or an id outside its sub-vocabulary.
    """
    array = np.asarray(tokens)
    count = len(vocabularies)
    right_shape = array.ndim == len(axes) + 2 and array.shape[-1] == count and array.size > 0
    if not right_shape or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"tokens must be integers of shape (B, {', '.join(axes)}, {count}), "
            f"found {array.dtype} of shape {array.shape}"
        )
    for k, size in enumerate(vocabularies):
        lowest, highest = int(array[..., k].min()), int(array[..., k].max())
        if lowest < 0 or highest >= size:
            raise InputError(
                f"the ids of sub-token {k} lie in 0..{size - 1}, found {lowest}..{highest}"
            )
    return array.astype(np.int64)
