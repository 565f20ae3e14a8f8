"""Token files: ids with all that is needed to read them rightly, as a plain .npz.

Arrays: ids (B, *grid, K) int64, vocabularies (K) int64, bit_order ("" where sub-tokens are no
bits), architecture, what the tokenizer's codes depend on as JSON, spec_sha256 of that, and
image_size, int64 pixels along each axis: smaller than the grid covers where images were padded.
Files of earlier versions have bits in place of vocabularies, or no architecture.

Those of a film have its clips in order, (B, t, h, w, K) and image_size (frames of a clip, height,
width), and int64 arrays of film_cut.py: film_frames, of the whole film, so that what was repeated
behind its end is known; film_overlap, frames that a clip has in common with the one before;
film_rate (2), frames per second as numerator and denominator; and of a film of variable rate
film_times (film_frames + 1) in ticks of film_tick (2) seconds, else empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.config import ModelSpec
from m2kit.errors import InputError, SpecError
from m2kit.families.sign_bits import (
    BIT_ORDERS,
    MOST_BITS,
    bits_of,
    codes_from_tokens,
    tokens_from_codes,
)
from m2kit.film_cut import FilmCut, arrays_from_cut, cut_from_arrays
from m2kit.hashes import canonical_json, sha256_of_text
from m2kit.inputs import open_input
from m2kit.npz_file import DamagedArchive, read_npz
from m2kit.outputs import check_output, new_file
from m2kit.tokens import check_tokens

_FILE = "a token file made by `m2kit encode` or `m2kit generate --tokens`"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a token file holds.

    Attributes:
        ids: (B, *grid, K) int64.
        vocabularies: V_k of each sub-token.
        bit_order: "lsb" or "msb"; "" where sub-tokens are no bits.
        architecture: What the tokenizer's codes depend on, as canonical JSON; "" if not told.
        spec_sha256: Of that text.
        image_size: Pixels of the images along each axis, such as (height, width).
        film: Of which film they are the clips; None where they are pictures, or clips of none.
    """

    ids: npt.NDArray[np.int64]
    vocabularies: tuple[int, ...]
    bit_order: str
    architecture: str
    spec_sha256: str
    image_size: tuple[int, ...]
    film: FilmCut | None = None


def token_file_from_ids(
    ids: npt.NDArray[np.int64],
    spec: ModelSpec,
    image_size: tuple[int, ...] | None = None,
    film: FilmCut | None = None,
) -> TokenFile:
    """Ids (B, *grid, K) with what the model says about them.

    Args:
        ids: What the model encoded or drew.
        spec: The model's.
        image_size: Pixels of the images along each axis; None for all that the grid covers.
        film: Of which they are the clips.
    """
    size = image_size or spec.size_of_grid(ids.shape[1:-1])
    own, order = _architecture(spec), spec.tokenizer.bit_order
    return TokenFile(ids, spec.vocabularies, order, own, sha256_of_text(own), size, film)


def write_tokens(path: Path, tokens: TokenFile) -> None:
    """Write a token file; whole or not at all."""
    check_output(path, ".npz")
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays_from_tokens(tokens))


def arrays_from_tokens(tokens: TokenFile) -> dict[str, Any]:
    """What a file holds of tokens, by name: `tokens_from_arrays` reads it."""
    arrays = {f.name: getattr(tokens, f.name) for f in fields(tokens) if f.name != "film"}
    return arrays | ({} if tokens.film is None else arrays_from_cut(tokens.film))


def read_tokens(path: Path) -> TokenFile:
    """The content of a token file.

    Raises:
        InputError: Not a token file, or its ids do not fit its sub-vocabularies.
    """
    with open_input(path, "token file") as file:
        try:
            arrays = read_npz(file)
        except DamagedArchive as error:
            raise InputError(f"{path}: expected {_FILE}") from error
    return tokens_from_arrays(path, arrays)


def tokens_from_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> TokenFile:
    """The content of a token file whose arrays were read.

    Args:
        path: Of the file, for errors.
        arrays: By name; there may be others.

    Raises:
        InputError: As `read_tokens` does.
    """
    try:
        old = "bits" in arrays
        sizes = _integers(arrays["bits" if old else "vocabularies"])
        vocabularies = _vocabularies(sizes, str(path)) if old else sizes
        tokens = TokenFile(
            ids=arrays["ids"],
            vocabularies=vocabularies,
            bit_order=str(arrays["bit_order"]),
            architecture=str(arrays.get("architecture", "")),
            spec_sha256=str(arrays["spec_sha256"]),
            image_size=_integers(arrays["image_size"]),
        )
    except KeyError as error:
        raise InputError(f"{path}: expected {_FILE}; it has no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected {_FILE}") from error
    orders = ("", *BIT_ORDERS)
    sound = vocabularies and min(vocabularies) >= 1 and tokens.bit_order in orders
    if not sound or not tokens.image_size or min(tokens.image_size) < 1:
        raise InputError(
            f"{path}: expected {_FILE}; found sub-vocabularies {list(vocabularies)}, bit order "
            f"{tokens.bit_order!r:.20}, image size {list(tokens.image_size)}"
        )
    told, sha256 = tokens.architecture, tokens.spec_sha256
    if not re.fullmatch("[0-9a-f]{64}", sha256) or (told and sha256_of_text(told) != sha256):
        raise InputError(
            f"{path}: its spec_sha256, {sha256!r:.70}, is not the hash of its tokenizer's "
            "architecture; make the file again"
        )
    if tokens.bit_order:
        _bits(vocabularies, str(path))
    axes = tuple(f"n{index}" for index in range(len(tokens.image_size)))
    try:
        film = cut_from_arrays(arrays, tokens.image_size[0])
        if film is not None and film.clips != len(tokens.ids):
            raise InputError(
                f"expected {film.clips} clips for {film.frames} frames, found {len(tokens.ids)}"
            )
        return replace(tokens, ids=check_tokens(tokens.ids, vocabularies, axes), film=film)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_tokens_of(path: Path, spec: ModelSpec) -> TokenFile:
    """The content of a token file made by a model with the same tokenizer architecture and split.

    Raises:
        InputError: Not a token file, or one of another model.
    """
    tokens = read_tokens(path)
    check_architecture(path, tokens, spec)
    order = spec.tokenizer.bit_order
    if (tokens.vocabularies, tokens.bit_order) != (spec.vocabularies, order):
        found = _layout(tokens.vocabularies, tokens.bit_order)
        own = _layout(spec.vocabularies, order)
        raise InputError(
            f"{path} holds sub-tokens of {found}; this model has {own}{_conversion(path, spec)}"
        )
    if len(tokens.image_size) != len(spec.tokenizer.axes):
        raise InputError(
            f"{path} holds pictures of {len(tokens.image_size)} axes; encode them again"
        )
    covered, strides = spec.size_of_grid(tokens.ids.shape[1:-1]), spec.tokenizer.strides
    missing = [c - s for c, s in zip(covered, tokens.image_size, strict=True)]
    if not all(0 <= m < stride for m, stride in zip(missing, strides, strict=True)):
        raise InputError(
            f"{path} says its images have {list(tokens.image_size)} pixels, its grid covers "
            f"{list(covered)}; encode the images again"
        )
    return tokens


def check_architecture(path: Path, tokens: TokenFile, spec: ModelSpec) -> None:
    """Refuse tokens of a model with another tokenizer architecture.

    Raises:
        InputError: They are.
    """
    if tokens.spec_sha256 != sha256_of_text(_architecture(spec)):
        raise InputError(f"{path} was made by a model with another tokenizer architecture")


def converted_tokens(tokens: TokenFile, bits: tuple[int, ...], bit_order: str) -> TokenFile:
    """The same codes in another split and bit order.

    Raises:
        InputError: The file's sub-tokens are no bits, or the bits do not sum to theirs.
    """
    own = _bits(tokens.vocabularies, "these tokens cannot be split otherwise")
    if tokens.bit_order not in BIT_ORDERS:
        raise InputError("these tokens cannot be split otherwise: their sub-tokens are no bits")
    vocabularies = _vocabularies(bits, "bits")
    if bit_order not in BIT_ORDERS:
        raise InputError(
            f"bit_order must be {' or '.join(BIT_ORDERS)}, found {bit_order}", option="--bit-order"
        )
    if sum(bits) != sum(own):
        raise InputError(
            f"sub-tokens of {list(bits)} make up {sum(bits)} bits, those of the file "
            f"{list(own)} make up {sum(own)}",
            option="--bits",
        )
    codes = codes_from_tokens(tokens.ids, own, tokens.bit_order)
    ids = tokens_from_codes(codes, bits, bit_order)
    return replace(tokens, ids=ids, vocabularies=vocabularies, bit_order=bit_order)


def _integers(array: npt.NDArray[np.integer]) -> tuple[int, ...]:
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise ValueError("not a list of whole numbers")
    return tuple(array.tolist())


def _bits(vocabularies: tuple[int, ...], where: str) -> tuple[int, ...]:
    try:
        return bits_of(vocabularies)
    except SpecError as error:
        raise InputError(f"{where}: {error}") from error


def _vocabularies(bits: tuple[int, ...], where: str) -> tuple[int, ...]:
    if not bits or min(bits) < 1 or sum(bits) > MOST_BITS:
        raise InputError(
            f"{where}: expected bits per sub-token from 1, {MOST_BITS} in all, found {list(bits)}"
        )
    return tuple(2**count for count in bits)


def _layout(vocabularies: tuple[int, ...], bit_order: str) -> str:
    """A split in words."""
    if not bit_order:
        return f"{list(vocabularies)} ids"
    return f"{list(bits_of(vocabularies))} bits, {bit_order} first"


def _conversion(path: Path, spec: ModelSpec) -> str:
    order = spec.tokenizer.bit_order
    if not order:
        return ""
    bits = ",".join(map(str, bits_of(spec.vocabularies)))
    return f"; change it with `m2kit convert-tokens {path} --bits {bits} --bit-order {order}`"


def _architecture(spec: ModelSpec) -> str:
    return canonical_json(spec.tokenizer.architecture())
