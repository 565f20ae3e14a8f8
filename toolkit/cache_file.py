"""A file of a token cache: a token file (token_file.py) that says more, of some of the pictures of
a data set.

A row is a crop. The rows of a picture stand together, in the order of their numbers, those of
held-out pictures behind the others. Beside a token file's arrays there are labels (B), the numbers
of crops (B) from 0 on, held_out (B) bool, groups (B) of text (pictures of one name belong
together), classes (their names) of text, and as JSON how it was made, `Making`. Ids have the
smallest type that holds them and are stored as they are, so that a training reads those it needs
from where they stand in the file.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.hashes import canonical_json
from m2kit.inputs import open_input
from m2kit.manifest import Name, Sha256
from m2kit.npz_file import DamagedArchive, read_npz
from m2kit.outputs import new_file
from m2kit.records import (
    BadRecord,
    Range,
    Text,
    checked_fields,
    json_from_text,
    read_record,
    to_json,
)
from m2kit.token_file import TokenFile, arrays_from_tokens, tokens_from_arrays

IDS_MEMBER = "ids.npy"
ENCODE_AGAIN = "encode the data set again with `m2kit encode`"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: bytes of its name and of the rest
_KINDS = {  # of arrays with a value a row: letters of numpy's types, and words
    "labels": ("iu", "whole numbers"),
    "crops": ("iu", "whole numbers"),
    "held_out": ("b", "true or false"),
    "groups": ("U", "texts"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How a cache was made; all of its files say the same but for their place.

    Attributes:
        tokenizer_sha256: Of the checkpoint file whose tokenizer encoded.
        tokenizer_weights: Which of its weights were taken.
        precision: What the encoder computed in: a few codes of float16 differ.
        data: Title of the data set.
        data_sha256: Of its labels and groups.
        crops: Of each training picture; held-out pictures have one, at the centre.
        place: Where they were taken.
        flip: Every second one was mirrored.
        seed: Of place and flip.
        part: Place of the file among all, from 0 on.
        parts: How many files there are.
    """

    tokenizer_sha256: Sha256
    tokenizer_weights: Text
    precision: Literal["float32", "float16"]
    data: Name
    data_sha256: Sha256
    crops: Annotated[int, Range(1, 1000)]
    place: Literal["random", "centre"]
    flip: bool
    seed: Annotated[int, Range(0, 2**32 - 1)]
    part: Annotated[int, Range(0, 2**31)] = 0
    parts: Annotated[int, Range(1, 2**31)] = 1

    def __post_init__(self) -> None:
        """Refuse what could not be read again, before anything is encoded."""
        checked_fields(self, "", InputError)


@dataclass(frozen=True, slots=True)
class CacheFile:
    """What one file of a cache holds.

    Attributes:
        tokens: Of its rows.
        labels: (B) int64.
        crops: (B) int64.
        held_out: (B) bool.
        groups: (B) of text.
        classes: Names, by label.
        making: How it was made.
    """

    tokens: TokenFile
    labels: npt.NDArray[np.int64]
    crops: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.str_]
    classes: tuple[str, ...]
    making: Making


def write_cache_file(path: Path, content: CacheFile) -> None:
    """Write a file of a cache; whole or not at all."""
    smallest = np.min_scalar_type(max(content.tokens.vocabularies) - 1)
    ids = np.ascontiguousarray(content.tokens.ids.astype(smallest))
    arrays = arrays_from_tokens(replace(content.tokens, ids=ids)) | {
        "labels": content.labels,
        "crops": content.crops,
        "held_out": content.held_out,
        "groups": content.groups,
        "classes": np.array(content.classes),
        "making": canonical_json(to_json(content.making)),
    }
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            stored = entry.filename == IDS_MEMBER
            entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_cache_file(path: Path) -> CacheFile:
    """The content of a file of a cache, checked.

    Raises:
        InputError: Damaged, no token file, or one that is no part of a cache; names the field.
    """
    with open_input(path, "token file") as file:
        try:
            arrays = read_npz(file)
        except DamagedArchive as error:
            raise InputError(f"{path}: is damaged or no token file; {ENCODE_AGAIN}") from error
    for name in ("making", "classes", *_KINDS):
        if name not in arrays:
            raise InputError(
                f"{path}: expected {name}, as a token cache has them, found {sorted(arrays)}; "
                "encode a data set with crops",
                option="--crops",
            )
    tokens = tokens_from_arrays(path, arrays)
    making = _making(path, arrays["making"])
    count, classes = len(tokens.ids), arrays["classes"]
    for name, (kind, words) in _KINDS.items():
        array = arrays[name]
        if array.dtype.kind not in kind or array.shape != (count,):
            raise _bad(path, name, f"{count} {words}", f"{array.dtype} of shape {array.shape}")
    if classes.dtype.kind != "U" or classes.ndim != 1 or not len(classes):
        raise _bad(path, "classes", "a list of names", f"{classes.dtype} of shape {classes.shape}")
    labels, crops, held_out = arrays["labels"], arrays["crops"], arrays["held_out"]
    if labels.min() < 0 or labels.max() >= len(classes):
        raise _bad(path, "labels", f"0..{len(classes) - 1}", f"{labels.min()}..{labels.max()}")
    trained = crops[~held_out]
    whole = len(trained) % making.crops == 0 and not crops[held_out].any()
    whole &= bool((held_out[:-1] <= held_out[1:]).all())
    if not whole or not np.array_equal(trained, np.arange(len(trained)) % making.crops):
        expected = f"0..{making.crops - 1} of each picture, then 0 of each that is held out"
        raise _bad(path, "crops", expected, "others")
    return CacheFile(
        tokens,
        labels.astype(np.int64),
        crops.astype(np.int64),
        held_out,
        arrays["groups"],
        tuple(classes.tolist()),
        making,
    )


def place_of_ids(path: Path) -> tuple[np.dtype[Any], int]:
    """Type of a file's ids, and where they begin, in bytes.

    Raises:
        InputError: They cannot be read from there.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(IDS_MEMBER)
        with archive.open(entry) as member:
            plain = np.lib.format.read_magic(member) == (1, 0)
            _, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            header = member.tell()
        if entry.compress_type != zipfile.ZIP_STORED or fortran or not plain:
            raise _bad(path, "ids", "rows stored as they are", "compressed or turned ones")
        file.seek(entry.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return dtype, entry.header_offset + _LOCAL_HEADER.size + name + extra + header


def _making(path: Path, array: npt.NDArray[Any]) -> Making:
    try:
        making = read_record(Making, json_from_text(str(array)), "making")
    except BadRecord as error:
        raise InputError(f"{path}: {error}; {ENCODE_AGAIN}") from error
    if making.part >= making.parts:
        raise _bad(path, "making.part", f"0..{making.parts - 1}", str(making.part))
    return making


def _bad(path: Path, name: str, expected: str, found: str) -> InputError:
    return InputError(f"{path}: expected {name} of {expected}, found {found}; {ENCODE_AGAIN}")
