"""The tensors of a checkpoint file, as data: nothing in a file is ever executed.

Read are zip files and the older plain pickles that torch.save writes, with weights only, and
safetensors; which one a file is, its first bytes tell. torch.load trusts the archive it opens, so
what it leaves out is checked here: the CRC-32 of every record, and that every tensor's bytes are
exactly one record (a pickle may declare more than is there, and the rest would be read from
whatever follows). safetensors files hold no checksums: a changed weight in one cannot be noticed.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from m2kit.errors import CheckpointError, require
from m2kit.training.checkpoints.notes import METADATA
from m2kit.training.checkpoints.pickle_scan import refused_name

_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of a zip record's name and extra field
_ZIP_END_BYTES = 22  # of the list of records' own record, which ends a zip without a comment
_PICKLES_OF_OLD_FILES = 5  # magic number, protocol, system, content, storage keys; then raw bytes
_REASON_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        tensors: Name in the file -> dense tensor, mapped from the file where it allows that.
        others: Names beside them of anything else.
        notes: What m2kit's own trainers added, unchecked; None where there is nothing.
    """

    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    notes: Any


def read_file(path: Path, *, check: bool) -> Content:
    """Read a checkpoint file.

    Args:
        path: The file.
        check: Compare the CRC-32 of every record (the whole file is read); without it only the
            structure is checked.

    Raises:
        CheckpointError: Not a checkpoint, damaged, or it asks for more than weights.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected a checkpoint file, found {found}")
    if _is_safetensors(path):
        return Content(_safetensors(path), (), None)
    content = read_torch_file(path, check=check)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict with a state_dict"
        )
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path}: its state_dict is a {type(tensors).__name__}, not a dict")
    named = {
        name: tensor.detach().resolve_neg()
        for name, tensor in tensors.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    others = tuple(name for name in tensors if isinstance(name, str) and name not in named)
    return Content(named, others, content.get(METADATA))


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins with the length of a JSON object that fits into it."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        return False
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size - 8


def _safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", extra="export", what="reading a safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library's own class, and what torch raises on odd dtypes
        raise _unreadable(path, "a whole safetensors file", error) from error


def read_torch_file(path: Path, *, check: bool) -> Any:
    """What torch.save wrote: tensors and plain containers, unchecked but for that.

    Args:
        path: The file.
        check: As for `read_file`.

    Raises:
        CheckpointError: Not such a file, damaged, or it asks for more than weights.
    """
    zipped = _is_archive(path)
    try:
        if zipped:
            records, refused = _scan_archive(path, check)
        else:
            records, refused = set(), _refused_in_pickles(path)
        if refused is not None:
            raise CheckpointError(
                f"{path} asks to load {refused}, which is more than weights; it was refused and "
                "nothing was run. Save the state_dict alone"
            )
        with _neutral_name(path) as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd pickles; ours is the error
            content = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
        storages = _storages(content) if zipped else {}
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make zipfile and torch raise almost anything
        raise _unreadable(path, "a PyTorch checkpoint", error) from error
    if not _lie_on_records(storages, records):
        raise CheckpointError(
            f"{path} is damaged: it declares tensors of other sizes than its records have; "
            "fetch the file again"
        )
    return content


def _is_archive(path: Path) -> bool:
    """Whether torch.load or zipfile takes the file for a zip: one may see what the other does not.

    Raises:
        CheckpointError: A zip that does not end as torch.save ends it, where the two could differ.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, path.stat().st_size - _ZIP_END_BYTES))
        end = file.read()
    if start != b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return False
    if not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint: it does not end with its list of records; "
            "fetch the file again"
        )
    return True


def _refused_in_pickles(path: Path) -> str | None:
    """The first name in an older file's pickles that is more than weights need."""
    with path.open("rb") as file:
        for number in range(_PICKLES_OF_OLD_FILES):
            if number and not file.peek(1):
                break  # a single pickle: torch.load says what it is not
            if refused := refused_name(file):
                return refused
    return None


@contextlib.contextmanager
def _neutral_name(path: Path) -> Iterator[Path]:
    """The file under a name that says nothing: torch.load chooses a reader by .safetensors."""
    if path.suffix != ".safetensors":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "checkpoint"
        link.symlink_to(path.resolve())
        yield link


def _unreadable(path: Path, expected: str, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{path} is not {expected} ({reason[:_REASON_LENGTH]})")


def _scan_archive(path: Path, check: bool) -> tuple[set[tuple[int, int]], str | None]:
    """(offset, size) in the file of every record's bytes, and the first name in its pickles that
    is more than weights need.

    Raises:
        CheckpointError: Not an archive as torch.save writes it, or a record's CRC-32 is wrong.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        _check_entries(path, entries)
        damaged = archive.testzip() if check else None
        if damaged:
            raise CheckpointError(
                f"{path} is damaged: the CRC-32 of its record {damaged} is wrong; "
                "fetch the file again"
            )
        records = {(_data_offset(file, entry), entry.file_size) for entry in entries}
        pickles = (archive.open(entry) for entry in entries if entry.filename.endswith(".pkl"))
        return records, next(filter(None, map(refused_name, pickles)), None)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint: its records are packed, torch.save stores them"
        )
    odd = [
        name
        for name in names
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name
    ]
    if odd or len(set(names)) < len(names):
        what = f"a record named {odd[0]!r:.80}" if odd else "two records of one name"
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: it has {what}")


def _data_offset(file: Any, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return int(entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length)


def _storages(content: Any) -> dict[int, int]:
    """Address -> bytes of the memory of every dense tensor in nested containers."""
    storages = {}
    seen: set[int] = set()  # a small pickle can hold an endless structure
    pending = [content]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout == torch.strided and value.device.type == "cpu":
                storage = value.untyped_storage()
                if storage.nbytes():
                    storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            pending.extend(value)
    return storages


def _lie_on_records(storages: Mapping[int, int], records: set[tuple[int, int]]) -> bool:
    """Whether mapped storages (address -> bytes) are records of the one file they map."""
    if not storages:
        return True
    first = min(storages)
    starts = (first - offset for offset, size in records if size == storages[first])
    return any(
        all((address - start, size) in records for address, size in storages.items())
        for start in starts
    )
