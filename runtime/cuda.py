"""CUDA's driver API as m2kit uses it, through cuda-bindings: calls whose status is always checked,
memory allocated once, a stream, and graphs captured from it.

The driver API, not the CUDA runtime's: cuda-bindings brings a runtime of its own, which refuses
drivers that are older than itself, as JetPack's are. All is done in the GPU's primary context,
which TensorRT and others in this process use too; it is kept for as long as the process lives.

Written after NVIDIA's documentation of cuda-bindings 12 and 13; run with 13 on one H200.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import BackendError
from m2kit.runtime.device import status_text

ALIGNMENT_BYTES = 256  # of every address TensorRT is given
_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # of cuStreamCreate: does not wait for the default stream


class Gpu:
    """One GPU with one stream; all work of a backend goes through it, in order, from any thread.

    Attributes:
        stream: The stream's handle, as an integer.
        synchronize: Waits until all work given to the stream is done.
    """

    def __init__(self) -> None:
        """Create the stream on the first visible GPU."""
        self._driver = importlib.import_module("cuda.bindings.driver")
        self._thread = threading.local()
        self._checked("cuInit", 0)
        self._context = self._checked("cuDevicePrimaryCtxRetain", self._checked("cuDeviceGet", 0))
        self._stream = self.call("cuStreamCreate", _NON_BLOCKING)
        self.stream = int(self._stream)
        self.synchronize = self.bound("cuStreamSynchronize", self._stream)
        self._recorded: list[Any] = []

    def enter(self) -> None:
        """Make the context this thread's: a new thread has none, where the CUDA runtime's calls
        would have taken the primary one."""
        if not hasattr(self._thread, "entered"):
            self._checked("cuCtxSetCurrent", self._context)
            self._thread.entered = True

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the driver returns after its status.

        Raises:
            BackendError: Its status is an error.
        """
        self.enter()
        return self._checked(function, *arguments)

    def _checked(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status):
            raise self.failure(function, status)
        return values[0] if values else None

    def failure(self, function: str, status: Any) -> BackendError:
        """An error status in words, with what can be done about it."""
        cure = "see the reason; `m2kit doctor` shows driver and packages"
        if int(status) == _OUT_OF_MEMORY:
            cure = "close other programs on the GPU, or build the engine for a smaller batch"
        return BackendError(
            f"CUDA failed in {function} ({status_text(self._driver, status)}); {cure}"
        )

    def bound(self, function: str, *arguments: Any) -> Callable[[], None]:
        """A call of a function of the driver that returns nothing but its status, prepared once;
        it raises as `call` does."""
        prepared, enter = getattr(self._driver, function), self.enter

        def run() -> None:
            enter()
            (status,) = prepared(*arguments)
            if int(status):
                raise self.failure(function, status)

        return run

    def clear(self, address: int, size: int) -> None:
        """Queue zeros: on this stream, which does not wait for the default one."""
        self.call("cuMemsetD8Async", address, 0, size, self._stream)

    def upload(self, destination: int, source: int, size: int) -> None:
        """Queue a copy from pinned host memory to the GPU."""
        self.call("cuMemcpyHtoDAsync", destination, source, size, self._stream)

    def download(self, destination: int, source: int, size: int) -> None:
        """Queue a copy from the GPU to pinned host memory."""
        self.call("cuMemcpyDtoHAsync", destination, source, size, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues on the stream, without running it.

        Returns:
            A function that queues all of it again, as one launch.

        Raises:
            BackendError: Something of it cannot be recorded; the stream is usable afterwards.
        """
        driver = self._driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self._stream, mode)
        graph = None
        try:
            try:
                work()
            finally:
                status, graph = driver.cuStreamEndCapture(self._stream)
            if int(status):
                raise self.failure("cuStreamEndCapture", status)
            recorded = self.call("cuGraphInstantiate", graph, 0)
        finally:
            if graph is not None and int(graph):
                self.release("cuGraphDestroy", graph)
        self._recorded.append(recorded)
        self.call("cuGraphUpload", recorded, self._stream)
        return self.bound("cuGraphLaunch", recorded, self._stream)

    def strided_copies(
        self, source: int, cache: int, layout: CacheLayout
    ) -> list[Callable[[], None]]:
        """One function per position, each of which queues a single copy of new rows into a cache.

        Args:
            source: Address of the new rows of all tensors, without gaps.
            cache: Address of the block.
            layout: Of the block.
        """
        driver, row, width = self._driver, layout.row, layout.row * layout.capacity
        on_device = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE

        def at(position: int) -> Callable[[], None]:
            copy = driver.CUDA_MEMCPY3D()
            copy.srcMemoryType, copy.srcDevice = on_device, source
            copy.srcPitch, copy.srcHeight = row, layout.rows
            copy.dstMemoryType, copy.dstDevice = on_device, cache
            copy.dstPitch, copy.dstHeight = width, layout.pitch // width
            copy.dstXInBytes = position * row
            copy.WidthInBytes, copy.Height, copy.Depth = row, layout.rows, len(layout.names)
            return self.bound("cuMemcpy3DAsync", copy, self._stream)

        return [at(position) for position in range(layout.capacity)]

    def release(self, function: str, handle: Any) -> None:
        """Give something back. A status here can only repeat an error that was raised before."""
        self.enter()
        getattr(self._driver, function)(handle)

    def finish(self) -> None:
        """Wait for the stream before something is given back."""
        self.release("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy the stream and what was recorded."""
        for recorded in self._recorded:
            self.release("cuGraphExecDestroy", recorded)
        self.release("cuStreamDestroy", self._stream)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How the past.* tensors of a step graph lie in one block on a GPU.

    Attributes:
        names: Of the tensors.
        row: Bytes of one position of one head.
        rows: Rows times heads.
        capacity: Positions.
        pitch: Bytes from one tensor to the next: a multiple of the alignment and of a head's block.
    """

    names: tuple[str, ...]
    row: int
    rows: int
    capacity: int
    pitch: int

    @classmethod
    def of(cls, names: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> CacheLayout:
        """The layout of tensors of one shape (R, H, S, d)."""
        rows, heads, capacity, head_size = shape
        row = head_size * np.dtype(dtype).itemsize
        step = math.lcm(row * capacity, ALIGNMENT_BYTES)
        pitch = -(-rows * heads * row * capacity // step) * step
        return cls(names, row, rows * heads, capacity, pitch)

    @property
    def bytes(self) -> int:
        """Of the whole block."""
        return self.pitch * len(self.names)

    @property
    def present_bytes(self) -> int:
        """Of the new rows of all tensors."""
        return self.row * self.rows * len(self.names)

    def addresses(self, base: int) -> dict[str, int]:
        """Address of each tensor."""
        return {name: base + index * self.pitch for index, name in enumerate(self.names)}


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
        self._host = int(gpu.call("cuMemHostAlloc", host_bytes, 0))
        self._device: Any = None
        try:
            self._device = int(gpu.call("cuMemAlloc", total))
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
        self._gpu.upload(self._device + at, self._host + at, size)

    def download(self, first: str, last: str) -> None:
        """Queue one copy from the GPU of the shared places from `first` to `last`."""
        at, size = self._span(first, last)
        self._gpu.download(self._host + at, self._device + at, size)

    def _span(self, first: str, last: str) -> tuple[int, int]:
        start = self._offsets[first]
        return start, self._offsets[last] + self._sizes[last] - start

    def free(self) -> None:
        """Give both blocks back; the arrays must not be touched afterwards."""
        self.arrays.clear()
        if self._device is not None:
            self._gpu.release("cuMemFree", self._device)
        self._gpu.release("cuMemFreeHost", self._host)


def size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
