"""A GPU for tests: cuda.bindings.runtime over host memory.

Enumerations, structs and everything that needs no driver are the real package's. Work on a stream
runs when the stream is waited for, not before, so code that reads too early or overwrites what is
still to be copied gets wrong numbers, as on a GPU. Device memory that was never written holds NaN.
What CUDA would answer with an error or with undefined behaviour raises Misuse.
"""

from __future__ import annotations

import copy
import importlib
import types

import numpy as np

ALIGNMENT = 256


class Misuse(AssertionError):
    """What a GPU would punish later, or never."""


class CudaDouble:
    """The state of one GPU; `module` stands in for cuda.bindings.runtime.

    Attributes:
        devices: (name, major, minor) of what cudaGetDeviceCount counts.
        launches: How often a CUDA graph was launched.
        fail: Function name -> status name it gives the next time.
    """

    def __init__(self, devices=(("Test GPU", 8, 6),), driver=13000, memory=1 << 34):
        self.real = importlib.import_module("cuda.bindings.runtime")
        self.devices, self.driver, self.memory = devices, driver, memory
        self.status = self.real.cudaError_t
        self.allocations = {}  # address -> (kind, buffer)
        self.kept = []  # freed memory: overwritten, and never used again
        self.streams = {}
        self.graphs = {}
        self.recorded = {}
        self.launches = 0
        self.fail = {}
        self.calls = []
        self.misused = []  # what was noticed where nothing can be raised
        self.module = types.ModuleType("cuda.bindings.runtime")
        self.module.__dict__.update(
            {n: v for n, v in vars(self.real).items() if not n.startswith("__")}
        )
        for name in dir(self):
            if name.startswith("cuda") and callable(getattr(self, name)):
                assert hasattr(self.real, name), f"cuda-bindings has no {name}"
                setattr(self.module, name, self._watched(name))

    def _watched(self, name):
        function = getattr(self, name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                values = (None,) * (name in _RETURNING)
                if name == "cudaStreamEndCapture":  # which ends the capture all the same
                    function(*arguments)
                return (getattr(self.status, self.fail.pop(name)), *values)
            captured = next((s for s in self.streams.values() if s.captured is not None), None)
            if captured and name not in _WHILE_CAPTURING:
                captured.broken = True
                values = (None,) * (name in _RETURNING)
                return (self.status.cudaErrorStreamCaptureUnsupported, *values)
            return function(*arguments)

        return call

    @property
    def ok(self):
        return self.status.cudaSuccess

    # --- the device

    def cudaGetDeviceCount(self):
        if not self.driver or self.driver // 1000 < 13:
            return (self.status.cudaErrorInsufficientDriver, None)
        if not self.devices:
            return (self.status.cudaErrorNoDevice, None)
        return (self.ok, len(self.devices))

    def cudaDriverGetVersion(self):
        return (self.ok, self.driver)

    def cudaRuntimeGetVersion(self):
        return (self.ok, 13000)

    def cudaGetDeviceProperties(self, index):
        name, major, minor = self.devices[index]
        return (self.ok, types.SimpleNamespace(name=name.encode(), major=major, minor=minor))

    def cudaSetDevice(self, index):
        return (self.ok,) if index < len(self.devices) else (self.status.cudaErrorInvalidDevice,)

    def cudaGetErrorString(self, status):
        return (self.ok, f"what {status.name} means".encode())

    def cudaGetLastError(self):
        return (self.ok,)

    # --- memory

    def _allocate(self, kind, size):
        if size > self.memory:
            return (self.status.cudaErrorMemoryAllocation, None)
        raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        buffer = raw[start : start + size]
        self.allocations[buffer.ctypes.data] = (kind, buffer)
        return (self.ok, buffer.ctypes.data)

    def cudaMalloc(self, size):
        return self._allocate("device", size)

    def cudaHostAlloc(self, size, flags):
        return self._allocate("host", size)

    def _free(self, kind, address):
        self.run_all()
        if address not in self.allocations or self.allocations[address][0] != kind:
            raise Misuse(f"freed {kind} memory that is not allocated")
        _, buffer = self.allocations.pop(address)
        buffer[:] = 0xFF
        self.kept.append(buffer)
        return (self.ok,)

    def cudaFree(self, address):
        return self._free("device", address)

    def cudaFreeHost(self, address):
        return self._free("host", address)

    def view(self, address, size, kind="device"):
        """The bytes at an address, which must lie in one live allocation of that kind."""
        for base, (found, buffer) in self.allocations.items():
            if base <= address and address + size <= base + len(buffer):
                if found != kind:
                    raise Misuse(f"expected {kind} memory at {address:#x}, found {found}")
                return buffer[address - base : address - base + size]
        raise Misuse(f"{size} bytes at {address:#x} are not in one live allocation")

    def cudaMemset(self, address, value, size):
        raise Misuse("on the default stream, for which a non-blocking one does not wait")

    def cudaMemsetAsync(self, address, value, size, handle):
        def work():
            self.view(address, size)[:] = value

        self.queue(handle, work)
        return (self.ok,)

    # --- streams

    def cudaStreamCreateWithFlags(self, flags):
        handle = self.real.cudaStream_t(0x5000 + len(self.streams))
        self.streams[int(handle)] = Stream()
        return (self.ok, handle)

    def stream(self, handle):
        """The stream of a handle."""
        if int(handle) not in self.streams:
            raise Misuse("a stream that was destroyed, or the default stream")
        return self.streams[int(handle)]

    def queue(self, handle, work):
        """Add work to a stream, or to what is captured from it."""
        stream = self.stream(handle)
        (stream.waiting if stream.captured is None else stream.captured).append(work)

    def run_all(self):
        for stream in self.streams.values():
            stream.run()

    def cudaStreamSynchronize(self, handle):
        self.stream(handle).run()
        return (self.ok,)

    def cudaStreamDestroy(self, handle):
        self.stream(handle).run()
        del self.streams[int(handle)]
        return (self.ok,)

    def cudaMemcpyAsync(self, destination, source, size, kind, handle):
        kinds = self.real.cudaMemcpyKind
        to, of = {
            kinds.cudaMemcpyHostToDevice: ("device", "host"),
            kinds.cudaMemcpyDeviceToHost: ("host", "device"),
        }[kind]

        def work():
            self.view(destination, size, to)[:] = self.view(source, size, of)

        self.queue(handle, work)
        return (self.ok,)

    def cudaMemcpy3DAsync(self, parameters, handle):
        source, target = parameters.srcPtr, parameters.dstPtr
        at, extent = parameters.dstPos, parameters.extent
        if parameters.kind != self.real.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            raise Misuse("the cache is copied on the device")
        copied = [
            (
                int(target.ptr) + (z * target.ysize + y) * target.pitch + at.x,
                int(source.ptr) + (z * source.ysize + y) * source.pitch,
            )
            for z in range(extent.depth)
            for y in range(extent.height)
        ]
        if at.x + extent.width > target.pitch or extent.width > source.pitch:
            return (self.status.cudaErrorInvalidValue,)
        if extent.height > min(source.ysize, target.ysize):
            return (self.status.cudaErrorInvalidValue,)
        width = extent.width

        def work():
            for to, of in copied:
                self.view(to, width)[:] = self.view(of, width)

        self.queue(handle, work)
        return (self.ok,)

    # --- graphs

    def cudaStreamBeginCapture(self, handle, mode):
        stream = self.stream(handle)
        if stream.waiting:
            raise Misuse("capture began before the warm-up was waited for")
        stream.captured, stream.broken = [], False
        return (self.ok,)

    def cudaStreamEndCapture(self, handle):
        stream = self.stream(handle)
        work, stream.captured = stream.captured, None
        if stream.broken:
            return (self.status.cudaErrorStreamCaptureInvalidated, None)
        graph = self.real.cudaGraph_t(0x6000 + len(self.graphs))
        self.graphs[int(graph)] = work
        return (self.ok, graph)

    def cudaGraphInstantiate(self, graph, flags):
        recorded = self.real.cudaGraphExec_t(0x7000 + len(self.recorded))
        self.recorded[int(recorded)] = copy.copy(self.graphs[int(graph)])
        return (self.ok, recorded)

    def cudaGraphDestroy(self, graph):
        self.graphs[int(graph)] = None
        return (self.ok,)

    def cudaGraphUpload(self, recorded, handle):
        return (self.ok,)

    def cudaGraphLaunch(self, recorded, handle):
        self.launches += 1
        for work in self.recorded[int(recorded)]:
            self.queue(handle, work)
        return (self.ok,)

    def cudaGraphExecDestroy(self, recorded):
        self.recorded[int(recorded)] = None
        return (self.ok,)

    def leaks(self):
        """What is still held; freed memory that was written since is an error at once."""
        if any((buffer != 0xFF).any() for buffer in self.kept):
            raise Misuse("memory was written after it was freed")
        graphs = [
            g for part in (self.graphs, self.recorded) for g in part.values() if g is not None
        ]
        return len(self.allocations), len(self.streams), len(graphs)


_RETURNING = (
    "cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaStreamEndCapture",
    "cudaGraphInstantiate", "cudaGetDeviceCount", "cudaGetDeviceProperties",
)  # fmt: skip
_WHILE_CAPTURING = (  # what a thread may call while one of its streams is captured
    "cudaMemcpyAsync", "cudaMemcpy3DAsync", "cudaStreamEndCapture", "cudaGetLastError",
    "cudaGetErrorString",
)  # fmt: skip


class Stream:
    """Work in order."""

    def __init__(self):
        self.waiting, self.captured, self.broken = [], None, False

    def run(self):
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()
