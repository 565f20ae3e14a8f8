"""Archives of plain arrays (.npz), a few rows at a time: for those that are larger than memory.

Nothing is unpickled; a checksum that is wrong is found when the last row is read. What is written
has the bytes that numpy.savez gives, which no time or place goes into.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from m2kit.npz_file import ARCHIVE_ERRORS, DamagedArchive

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MOST_TEXT_BYTES = 1 << 24


class RowArchive:
    """An opened .npz whose arrays are read by rows. Its errors are DamagedArchive: not an intact
    .npz of plain arrays, or no such array in it."""

    def __init__(self, file: BinaryIO) -> None:
        """Read what is in it."""
        self._name = file.name
        with self._damage():
            self._archive = zipfile.ZipFile(file)
        self.names = {name.removesuffix(".npy") for name in self._archive.namelist()}

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an array."""
        with self._member(name) as (shape, dtype, _):
            return shape, dtype

    def rows(self, name: str, at_once: int) -> Iterator[npt.NDArray[Any]]:
        """An array of one axis or more, so many rows at a time."""
        with self._member(name) as (shape, dtype, member):
            count = math.prod(shape[1:]) * dtype.itemsize  # bytes of a row
            for start in range(0, shape[0], at_once):
                wanted = min(at_once, shape[0] - start)
                data = bytearray(member.read(wanted * count))
                if len(data) != wanted * count:
                    raise DamagedArchive(self._name)
                yield np.frombuffer(data, dtype).reshape(wanted, *shape[1:])

    def text(self, name: str) -> str:
        """An array that is one text."""
        with self._member(name) as (shape, dtype, member):
            if shape or dtype.kind != "U" or dtype.itemsize > _MOST_TEXT_BYTES:
                raise DamagedArchive(self._name)
            return str(np.frombuffer(member.read(), dtype)[0])

    @contextmanager
    def _member(self, name: str) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], IO[bytes]]]:
        with self._damage():
            entry = self._archive.getinfo(f"{name}.npy")
            with self._archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                shape, fortran, dtype = _HEADERS[version](member)
                size = member.tell() + math.prod(shape) * dtype.itemsize
                if dtype.hasobject or (fortran and len(shape) > 1) or entry.file_size != size:
                    raise DamagedArchive(self._name)
                yield shape, dtype, member

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except ARCHIVE_ERRORS as error:
            raise DamagedArchive(self._name) from error


def write_rows(
    path: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any], Iterable[npt.NDArray[Any]]]],
) -> None:
    """Write an .npz of arrays that come in pieces.

    Args:
        path: The file.
        arrays: Name -> shape, type, and pieces of it: rows in their order, which are taken one
            after the other.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, (shape, dtype, pieces) in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                descr = np.lib.format.dtype_to_descr(dtype)
                np.lib.format.write_array_header_1_0(
                    member, {"descr": descr, "fortran_order": False, "shape": shape}
                )
                for piece in pieces:
                    member.write(np.asarray(piece, dtype).tobytes())
