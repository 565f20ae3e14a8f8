"""The files of a folder's graphs: the weights file that all of them share, and the graphs.

A weights file holds aligned tensors, identical ones once; one tensor at a time is in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit.contract import WEIGHTS_FILE

MICROSOFT = "com.microsoft"  # domain of ONNX Runtime's own operators
ALIGNMENT_BYTES = 65_536  # of every tensor, so that it can be memory-mapped
Make = Callable[[], npt.NDArray[Any]]


class WeightsFile:
    """A context manager over a weights file that is being written."""

    def __init__(self, folder: Path) -> None:
        """Begin the weights file of `folder`."""
        self.path = folder / WEIGHTS_FILE
        self._file = self.path.open("wb")
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> WeightsFile:
        """The file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def store(self, value: ir.Value, key: Hashable, make: Make) -> None:
        """Let an initializer, of known type and shape, refer to what `make` returns.

        Args:
            value: The initializer.
            key: What it holds; of several with one key the first is written and all refer to it.
            make: Computes the array.
        """
        self.write(key, make)
        self.refer(value, key)

    def write(self, key: Hashable, make: Make) -> None:
        """Write what `make` returns, unless it was written under that key."""
        if key not in self._places:
            self._places[key] = self._add(make())

    def refer(self, value: ir.Value, key: Hashable) -> None:
        """Let an initializer, of known type and shape, refer to what was written."""
        assert value.dtype is not None and isinstance(value.shape, ir.Shape)
        offset, length = self._places[key]
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            length,
            value.dtype,
            shape=value.shape,
            name=str(value.name),
            base_dir=self.path.parent,
        )

    def _add(self, array: npt.NDArray[Any]) -> tuple[int, int]:
        """Write a tensor's bytes, little-endian and in C order; returns (offset, bytes)."""
        data = np.ascontiguousarray(array).data.cast("B")
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._seen:
            offset = -(-self._file.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._file.seek(offset)
            self._file.write(data)
            self._seen[digest] = (offset, data.nbytes)
        return self._seen[digest]


def load_graph(path: Path) -> ir.Model:
    """A graph of a folder that check_folder has held: its weights are a regular file of that folder
    with the recorded hash, and may have other names. onnx-ir's own check, which refuses hard links,
    is not made of tensors without a base folder."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        told = value.const_value
        if isinstance(told, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                told.path, told.offset, told.length, told.dtype, shape=told.shape, name=told.name
            )
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph; the same graph gives the same bytes."""
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes of each operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))
