"""The KV cache of a step graph on ONNX Runtime, where the provider computes: bound once, so that a
run moves none of it between host and GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.contract import PRESENT, GraphIO
from m2kit.runtime.cuda import CacheLayout, Gpu


class KvCache(Protocol):
    """A cache that is bound to a session.

    Attributes:
        names: Of the inputs and outputs that it has bound.
    """

    names: set[str]

    def commit(self, position: int) -> None:
        """Append what the last run computed, at `position`."""


class HostCache:
    """One array (2L, R, H, S, d), read by the portable lowering and written by the fused one."""

    def __init__(self, binding: Any, io: GraphIO, rows: int, compute: str) -> None:
        """Allocate and bind it for `rows` rows."""
        past = [tensor for tensor in io.inputs if contract.is_past(tensor.name)]
        self.array = np.zeros((len(past), *past[0].fixed_shape({"R": rows})), compute)
        caches = {tensor.name: self.array[index] for index, tensor in enumerate(past)}
        outputs = {contract.updated(name): array for name, array in caches.items()}
        self._present: npt.NDArray[Any] | None = None  # where the graph writes in place
        for tensor in io.outputs:
            if tensor.name == PRESENT:
                self._present = np.zeros(tensor.fixed_shape({"R": rows}), compute)
                outputs = {PRESENT: self._present}
        for name, array in caches.items():
            bind_array(binding.bind_input, name, array)
        for name, array in outputs.items():
            bind_array(binding.bind_output, name, array)
        self.names = {*caches, *outputs}

    def commit(self, position: int) -> None:
        """Append what the last run computed, at `position`."""
        if self._present is not None:
            self.array[:, :, :, position] = self._present[:, :, :, 0]


class CudaCache:
    """Two OrtValues on the GPU, the cache and the new rows of the portable lowering. A commit is
    one strided copy on the stream on which the session runs, so neither waits for the host."""

    def __init__(
        self, ort: ModuleType, gpu: Gpu, binding: Any, io: GraphIO, rows: int, compute: str
    ) -> None:
        """Allocate, zero and bind it for `rows` rows."""
        past = [tensor for tensor in io.inputs if contract.is_past(tensor.name)]
        (present,) = (tensor for tensor in io.outputs if tensor.name == PRESENT)
        shape, new = (tensor.fixed_shape({"R": rows}) for tensor in (past[0], present))
        layout = CacheLayout.of(tuple(tensor.name for tensor in past), shape, compute)
        self._values = [  # which own the memory
            ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, "cuda", 0)
            for size in (layout.bytes, layout.present_bytes)
        ]
        cache_at, new_at = (int(value.data_ptr()) for value in self._values)
        gpu.clear(cache_at, layout.bytes)
        dtype = np.dtype(compute)
        for name, address in layout.addresses(cache_at).items():
            binding.bind_input(name, "cuda", 0, dtype, shape, address)
        binding.bind_output(PRESENT, "cuda", 0, dtype, new, new_at)
        self._commits = gpu.strided_copies(new_at, cache_at, layout)
        self.names = {*layout.names, PRESENT}

    def commit(self, position: int) -> None:
        """Append what the last run computed, at `position`."""
        self._commits[position]()


def bind_array(bind: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
    """Bind a host array to an input or output."""
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
