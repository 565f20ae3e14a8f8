"""Archives of plain arrays (.npz) from anywhere: read without unpickling, of bounded size."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

_MOST_PACKED = 100  # bytes of arrays that a byte of an archive may stand for
_SMALL_BYTES = 1 << 22  # that any archive may unpack to
ARCHIVE_ERRORS = (  # all that zipfile and numpy were seen to raise on damaged archives
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, SyntaxError, MemoryError,
    NotImplementedError, OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class DamagedArchive(Exception):
    """What `read_npz` raises for a file that is no intact archive of plain arrays."""


def read_npz(file: BinaryIO, only: Collection[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an opened .npz file, never unpickled; what else it holds is left out.

    Args:
        file: The file.
        only: Names of the arrays that are wanted, where others may be larger than memory.

    Raises:
        DamagedArchive: Not an intact .npz of plain arrays.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(file) as archive:
            packed = os.fstat(file.fileno()).st_size
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MOST_PACKED * packed + _SMALL_BYTES or archive.testzip():
                raise DamagedArchive(file.name)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            names = [name for name in arrays.files if only is None or name in only]
            found = {name: arrays[name] for name in names}
            return {name: a for name, a in found.items() if isinstance(a, np.ndarray)}
    except ARCHIVE_ERRORS as error:
        raise DamagedArchive(file.name) from error
