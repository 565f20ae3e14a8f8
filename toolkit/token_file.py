"""Token files: ids with all that is needed to read them rightly, as a plain .npz.

Arrays: ids (B, h, w, K) int64, bits (K) int64, bit_order, spec_sha256 of the tokenizer's
architecture (all of its spec but the bit order), and image_size (2) int64, (height, width) of the
images: smaller than the grid covers where they were padded. The grid is the shape of the ids.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.config import BIT_ORDERS, ModelSpec
from m2kit.errors import InputError
from m2kit.folders import DamagedArchive, check_output, new_file, read_npz, sha256_of_json
from m2kit.tokens import check_tokens, codes_from_tokens, tokens_from_codes


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a token file holds.

    Attributes:
        ids: (B, h, w, K) int64.
        bits: Bits of each sub-token.
        bit_order: "lsb" or "msb".
        spec_sha256: Of the tokenizer's architecture.
        image_size: (height, width) of the images in pixels.
    """

    ids: npt.NDArray[np.int64]
    bits: tuple[int, ...]
    bit_order: str
    spec_sha256: str
    image_size: tuple[int, int]


def token_file_from_ids(
    ids: npt.NDArray[np.int64], spec: ModelSpec, image_size: tuple[int, int] | None = None
) -> TokenFile:
    """Ids (B, h, w, K) with what the model says about them.

    Args:
        ids: What the model encoded or drew.
        spec: The model's.
        image_size: (height, width) of the images; None for all that the grid covers.
    """
    factor = spec.tokenizer.downsampling
    covered = (ids.shape[1] * factor, ids.shape[2] * factor)
    return TokenFile(
        ids, spec.bits, spec.tokenizer.bit_order, _architecture(spec), image_size or covered
    )


def write_tokens(path: Path, tokens: TokenFile) -> None:
    """Write a token file; whole or not at all."""
    check_output(path, ".npz")
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            ids=tokens.ids,
            bits=np.array(tokens.bits),
            bit_order=np.array(tokens.bit_order),
            spec_sha256=np.array(tokens.spec_sha256),
            image_size=np.array(tokens.image_size),
        )


def read_tokens(path: Path) -> TokenFile:
    """The content of a token file.

    Raises:
        InputError: Not a token file, or its ids do not fit its bits.
    """
    try:
        arrays = read_npz(path)
        height, width = _integers(arrays["image_size"])
        tokens = TokenFile(
            ids=arrays["ids"],
            bits=_integers(arrays["bits"]),
            bit_order=str(arrays["bit_order"]),
            spec_sha256=str(arrays["spec_sha256"]),
            image_size=(height, width),
        )
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such token file") from error
    except (DamagedArchive, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected a token file made by `m2kit encode` or `generate --tokens`"
        ) from error
    _check_layout(tokens.bits, tokens.bit_order, str(path))
    return replace(tokens, ids=check_tokens(tokens.ids, tokens.bits))


def read_tokens_of(path: Path, spec: ModelSpec) -> TokenFile:
    """The content of a token file made by a model with the same tokenizer architecture and split.

    Raises:
        InputError: Not a token file, or one of another model.
    """
    tokens = read_tokens(path)
    if tokens.spec_sha256 != _architecture(spec):
        raise InputError(f"{path} was made by a model with another tokenizer architecture")
    bits, order = spec.bits, spec.tokenizer.bit_order
    if (tokens.bits, tokens.bit_order) != (bits, order):
        raise InputError(
            f"{path} holds sub-tokens of {list(tokens.bits)} bits, {tokens.bit_order} first; this "
            f"model has {list(bits)}, {order} first; change it with `m2kit convert-tokens {path} "
            f"--bits {','.join(map(str, bits))} --bit-order {order}`"
        )
    factor = spec.tokenizer.downsampling
    covered = [side * factor for side in tokens.ids.shape[1:3]]
    if not all(0 <= c - s < factor for c, s in zip(covered, tokens.image_size, strict=True)):
        raise InputError(
            f"{path} says its images have {list(tokens.image_size)} pixels, its grid covers "
            f"{covered}; encode the images again"
        )
    return tokens


def converted_tokens(tokens: TokenFile, bits: tuple[int, ...], bit_order: str) -> TokenFile:
    """The same codes in another split and bit order.

    Raises:
        InputError: The bits do not sum to those of the file.
    """
    _check_layout(bits, bit_order, "--bits")
    if sum(bits) != sum(tokens.bits):
        raise InputError(
            f"--bits {','.join(map(str, bits))} make up {sum(bits)} bits, the file's sub-tokens "
            f"{list(tokens.bits)} make up {sum(tokens.bits)}"
        )
    codes = codes_from_tokens(tokens.ids, tokens.bits, tokens.bit_order)
    ids = tokens_from_codes(codes, bits, bit_order)
    return replace(tokens, ids=ids, bits=bits, bit_order=bit_order)


def _integers(array: npt.NDArray[np.integer]) -> tuple[int, ...]:
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise ValueError("not a list of whole numbers")
    return tuple(array.tolist())


def _check_layout(bits: tuple[int, ...], bit_order: str, where: str) -> None:
    sound = bits and min(bits) >= 1 and sum(bits) <= 62
    if not sound or bit_order not in BIT_ORDERS:
        raise InputError(
            f"{where}: expected bits per sub-token from 1, 62 in all, and a bit order of "
            f"{' or '.join(BIT_ORDERS)}; found {list(bits)}, {bit_order}"
        )


def _architecture(spec: ModelSpec) -> str:
    """sha256 of what the codes depend on; how their bits are counted is recorded apart."""
    fields = asdict(spec.tokenizer)
    del fields["bit_order"]
    return sha256_of_json(fields)
