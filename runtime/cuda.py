"""The CUDA runtime as m2kit uses it, through cuda-bindings: calls whose status is always checked,
memory allocated once, a stream, and graphs captured from it.

Written after NVIDIA's documentation of cuda-bindings 12 and 13; never run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import BackendError
from m2kit.runtime.device import status_text

ALIGNMENT_BYTES = 256  # of every address TensorRT is given
_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # of cudaStreamCreateWithFlags: does not wait for the default stream


class Gpu:
    """One GPU with one stream; all work of a backend goes through it, in order.

    Attributes:
        stream: The stream's handle, as an integer.
        synchronize: Waits until all work given to the stream is done.
    """

    def __init__(self) -> None:
        """Create the stream on the first visible GPU."""
        self._runtime = importlib.import_module("cuda.bindings.runtime")
        self.call("cudaSetDevice", 0)
        self._stream = self.call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        self.stream = int(self._stream)
        self.synchronize = self.bound("cudaStreamSynchronize", self._stream)
        self._recorded: list[Any] = []

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the CUDA runtime returns after its status.

        Raises:
            BackendError: Its status is an error.
        """
        status, *values = getattr(self._runtime, function)(*arguments)
        if int(status):
            raise self.failure(function, status)
        return values[0] if values else None

    def failure(self, function: str, status: Any) -> BackendError:
        """An error status in words, with what can be done about it."""
        cure = "see the reason; `m2kit doctor` shows driver and packages"
        if int(status) == _OUT_OF_MEMORY:
            cure = "close other programs on the GPU, or build the engine for a smaller batch"
        return BackendError(
            f"CUDA failed in {function} ({status_text(self._runtime, status)}); {cure}"
        )

    def bound(self, function: str, *arguments: Any) -> Callable[[], None]:
        """A call of a function of the CUDA runtime that returns nothing but its status, prepared
        once; it raises as `call` does."""
        prepared = getattr(self._runtime, function)

        def run() -> None:
            (status,) = prepared(*arguments)
            if int(status):
                raise self.failure(function, status)

        return run

    def clear(self, address: int, size: int) -> None:
        """Queue zeros: on this stream, which does not wait for the one of a plain cudaMemset."""
        self.call("cudaMemsetAsync", address, 0, size, self._stream)

    def copy(self, destination: int, source: int, size: int, *, to_device: bool) -> None:
        """Queue a copy between pinned host memory and the GPU."""
        kinds = self._runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", destination, source, size, kind, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues on the stream, without running it.

        Returns:
            A function that queues all of it again, as one launch.

        Raises:
            BackendError: Something of it cannot be recorded; the stream is usable afterwards.
        """
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self._stream, mode)
        graph = None
        try:
            try:
                work()
            finally:
                status, graph = runtime.cudaStreamEndCapture(self._stream)
                if int(status):
                    runtime.cudaGetLastError()  # or it would be reported again by the next call
            if int(status):
                raise self.failure("cudaStreamEndCapture", status)
            recorded = self.call("cudaGraphInstantiate", graph, 0)
        finally:
            if graph is not None and int(graph):
                self.release("cudaGraphDestroy", graph)
        self._recorded.append(recorded)
        self.call("cudaGraphUpload", recorded, self._stream)
        return self.bound("cudaGraphLaunch", recorded, self._stream)

    def strided_copies(
        self, source: int, cache: int, *, row: int, rows: int, capacity: int, pitch: int, depth: int
    ) -> list[Callable[[], None]]:
        """One function per position, each of which queues a single copy of new rows into a cache.

        Args:
            source: Address of `depth` blocks of `rows` rows, without gaps.
            cache: Address of `depth` blocks, each of `rows` times `capacity` rows.
            row: Bytes of a row.
            rows: Rows that are new in each block.
            capacity: Positions of the cache.
            pitch: Bytes from one block of the cache to the next; a multiple of row * capacity.
            depth: Blocks.
        """
        runtime, width = self._runtime, row * capacity

        def at(position: int) -> Callable[[], None]:
            parameters = runtime.cudaMemcpy3DParms()
            parameters.srcPtr = runtime.make_cudaPitchedPtr(source, row, row, rows)
            parameters.dstPtr = runtime.make_cudaPitchedPtr(cache, width, width, pitch // width)
            parameters.dstPos = runtime.make_cudaPos(position * row, 0, 0)
            parameters.extent = runtime.make_cudaExtent(row, rows, depth)
            parameters.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            return self.bound("cudaMemcpy3DAsync", parameters, self._stream)

        return [at(position) for position in range(capacity)]

    def release(self, function: str, handle: Any) -> None:
        """Give something back. A status here can only repeat an error that was raised before."""
        getattr(self._runtime, function)(handle)

    def finish(self) -> None:
        """Wait for the stream before something is given back."""
        self.release("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy the stream and what was recorded."""
        for recorded in self._recorded:
            self.release("cudaGraphExecDestroy", recorded)
        self.release("cudaStreamDestroy", self._stream)


class Memory:
    """One block on the GPU, zeroed, divided into named places. What the host writes or reads is
    its first part and has a twin in pinned host memory, at the same offsets.

    Attributes:
        addresses: Name -> address on the GPU, a multiple of 256.
        arrays: Name -> the host's array, of what is shared.
    """

    def __init__(
        self,
        gpu: Gpu,
        shared: Mapping[str, tuple[tuple[int, ...], str]],
        private: Mapping[str, int],
    ) -> None:
        """Allocate: name -> (shape, dtype) of what the host sees, name -> bytes of the rest."""
        self._gpu = gpu
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self._sizes = {name: size_bytes(*tensor) for name, tensor in shared.items()}
        self._offsets: dict[str, int] = {}
        total = 0
        for name, size in {**self._sizes, **private}.items():
            self._offsets[name] = total
            total += max(_aligned(size), ALIGNMENT_BYTES)
        host_bytes = sum(map(_aligned, self._sizes.values()))
        self._host = gpu.call("cudaHostAlloc", host_bytes, 0)
        self._device: Any = None
        try:
            self._device = gpu.call("cudaMalloc", total)
            gpu.clear(self._device, total)
        except BackendError:
            self.free()
            raise
        self.addresses = {name: self._device + at for name, at in self._offsets.items()}
        host = np.ctypeslib.as_array((ctypes.c_uint8 * host_bytes).from_address(self._host))
        host[:] = 0
        for name, (shape, dtype) in shared.items():
            at = self._offsets[name]
            self.arrays[name] = host[at : at + self._sizes[name]].view(dtype).reshape(shape)

    def upload(self, first: str, last: str) -> None:
        """Queue one copy to the GPU of the shared places from `first` to `last`."""
        at, size = self._span(first, last)
        self._gpu.copy(self._device + at, self._host + at, size, to_device=True)

    def download(self, first: str, last: str) -> None:
        """Queue one copy from the GPU of the shared places from `first` to `last`."""
        at, size = self._span(first, last)
        self._gpu.copy(self._host + at, self._device + at, size, to_device=False)

    def _span(self, first: str, last: str) -> tuple[int, int]:
        start = self._offsets[first]
        return start, self._offsets[last] + self._sizes[last] - start

    def free(self) -> None:
        """Give both blocks back; the arrays must not be touched afterwards."""
        self.arrays.clear()
        if self._device is not None:
            self._gpu.release("cudaFree", self._device)
        self._gpu.release("cudaFreeHost", self._host)


def size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
