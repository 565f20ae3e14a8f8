"""The tensors of a checkpoint file, as data: nothing in a file is ever executed.

Read are zip files and the older plain pickles that torch.save writes, with weights only, and
safetensors; which one a file is, its first bytes tell. torch.load trusts the archive it opens, so
what it leaves out is checked here: the CRC-32 of every record, and that every tensor's bytes are
exactly one record (a pickle may declare more than is there, and the rest would be read from
whatever follows). safetensors files hold no checksums: a changed weight in one cannot be noticed.
"""

from __future__ import annotations

import contextlib
import pickle
import re
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

METADATA = "m2kit"  # top-level key of what m2kit's own trainers add to a file
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of a zip record's name and extra field
_REASON_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        tensors: Name in the file -> tensor on the CPU, mapped from the file where it allows that.
        notes: What m2kit's own trainers added, unchecked; None where there is nothing.
    """

    tensors: dict[str, Tensor]
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
        return Content(_safetensors(path), None)
    content = _torch_file(path, check)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict with a state_dict"
        )
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path}: its state_dict is a {type(tensors).__name__}, not a dict")
    named = {n: t for n, t in tensors.items() if isinstance(n, str) and isinstance(t, Tensor)}
    return Content(named, content.get(METADATA))


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


def _torch_file(path: Path, check: bool) -> Any:
    zipped = zipfile.is_zipfile(path)
    records = _check_archive(path, check) if zipped else set()
    try:
        with _neutral_name(path) as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd pickles; ours is the error
            content = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
        storages = {
            storage.data_ptr(): storage.nbytes() for storage in _storages(content) if zipped
        }
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        if match:
            raise CheckpointError(
                f"{path} asks to load {match.group(1) or match.group(2)}, which is more than "
                "weights; it was refused and nothing was run. Save the state_dict alone"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch checkpoint") from error
    except Exception as error:  # a damaged pickle can make torch raise almost anything
        raise _unreadable(path, "a PyTorch checkpoint", error) from error
    if not _lie_on_records(storages, records):
        raise CheckpointError(
            f"{path} is damaged: it declares tensors of other sizes than its records have; "
            "fetch the file again"
        )
    return content


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


def _check_archive(path: Path, check: bool) -> set[tuple[int, int]]:
    """(offset, size) in the file of every record's bytes.

    Raises:
        CheckpointError: Not an archive as torch.save writes it, or a record's CRC-32 is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()
            _check_entries(path, entries)
            damaged = archive.testzip() if check else None
            records = {(_data_offset(file, entry), entry.file_size) for entry in entries}
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive can make zipfile raise almost anything
        raise _unreadable(path, "a PyTorch checkpoint", error) from error
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: the CRC-32 of its record {damaged} is wrong; fetch the file again"
        )
    return records


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


def _storages(content: Any) -> Iterator[torch.UntypedStorage]:
    """The memory of every dense tensor in nested containers, each visited once."""
    seen: set[int] = set()
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
                    yield storage
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            pending.extend(value)


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
