"""Token files: ids with all that is needed to read them rightly, as a plain .npz.

Arrays: ids (B, h, w, K) int64, bits (K) int64, bit_order, spec_sha256 of the tokenizer's spec.
The grid is the shape of the ids.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.folders import DamagedArchive, check_output, new_file, read_npz, sha256_of_json
from m2kit.tokens import check_tokens


def write_tokens(path: Path, tokens: npt.NDArray[np.int64], spec: ModelSpec) -> None:
    """Write tokens (B, h, w, K) of a model; whole or not at all."""
    check_output(path, ".npz")
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            ids=tokens,
            bits=np.array(spec.bits),
            bit_order=np.array(spec.tokenizer.bit_order),
            spec_sha256=np.array(_spec_hash(spec)),
        )


def read_tokens(path: Path, spec: ModelSpec) -> npt.NDArray[np.int64]:
    """Tokens (B, h, w, K) int64 of a file made by a model with the same tokenizer spec and split.

    Raises:
        InputError: Not a token file, or one of another model.
    """
    try:
        arrays = read_npz(path)
        ids, bits = arrays["ids"], tuple(arrays["bits"].tolist())
        order, found_hash = str(arrays["bit_order"]), str(arrays["spec_sha256"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such token file") from error
    except (DamagedArchive, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected a token file made by `m2kit encode` or `generate --tokens`"
        ) from error
    expected = (spec.bits, spec.tokenizer.bit_order)
    if (bits, order) != expected:
        raise InputError(
            f"{path} holds sub-tokens of {list(bits)} bits, {order} first; this model has "
            f"{list(expected[0])}, {expected[1]} first"
        )
    if found_hash != _spec_hash(spec):
        raise InputError(f"{path} was made by a model with another tokenizer architecture")
    return check_tokens(ids, spec.bits)


def _spec_hash(spec: ModelSpec) -> str:
    return sha256_of_json(asdict(spec.tokenizer))
