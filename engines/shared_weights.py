"""The weights file that a folder's graphs share, filled while graphs are being changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from m2kit.manifest import WEIGHTS_FILE
from m2kit.weights_file import WeightsWriter

Make = Callable[[], npt.NDArray[Any]]


class SharedWeights:
    """A context manager over an open weights file; one tensor at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        """Begin the weights file of `folder`."""
        self.path = folder / WEIGHTS_FILE
        self._file = self.path.open("wb")
        self._writer = WeightsWriter(self._file)
        self._places: dict[Hashable, tuple[int, int]] = {}

    def __enter__(self) -> SharedWeights:
        """The weights themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def store(self, value: ir.Value, key: Hashable, make: Make) -> None:
        """Let an initializer, of known type and shape, refer to what `make` returns.

        Args:
            value: The initializer.
            key: What it holds; of several with one key the first is written and all refer to it.
            make: Computes the array.
        """
        if key not in self._places:
            self._places[key] = self._writer.add(make())
        assert value.dtype is not None
        offset, length = self._places[key]
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            length,
            value.dtype,
            shape=_static(value),
            name=str(value.name),
            base_dir=self.path.parent,
        )


def _static(value: ir.Value) -> ir.Shape:
    assert isinstance(value.shape, ir.Shape)
    return value.shape


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph; the same graph gives the same bytes."""
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes of each operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))
