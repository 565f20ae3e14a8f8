"""The weights file that all graphs of a folder share: aligned tensors, identical ones once."""

from __future__ import annotations

import hashlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

ALIGNMENT_BYTES = 65_536  # of every tensor, so that it can be memory-mapped


class WeightsWriter:
    """Appends tensors to an open file."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin at the start of `file`."""
        self._file = file
        self._seen: dict[str, tuple[int, int]] = {}

    def add(self, array: npt.NDArray[Any]) -> tuple[int, int]:
        """Write a tensor's bytes, little-endian and in C order; returns (offset, bytes)."""
        data = np.ascontiguousarray(array).data.cast("B")
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._seen:
            offset = -(-self._file.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._file.seek(offset)
            self._file.write(data)
            self._seen[digest] = (offset, data.nbytes)
        return self._seen[digest]
