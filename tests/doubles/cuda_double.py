"""A GPU for tests: cuda.bindings.driver over host memory.

Enumerations, structs and everything that needs no driver are the real package's. Work on a stream
runs when the stream is waited for, not before, so code that reads too early or overwrites what is
still to be copied gets wrong numbers, as on a GPU. Device memory that was never written holds NaN.
A thread that has not made the context its own gets an error. What CUDA would answer with an error
or with undefined behaviour raises Misuse.
"""

from __future__ import annotations

import copy
import importlib
import threading
import types
import weakref

import numpy as np

ALIGNMENT = 256
MODULE = "cuda.bindings.driver"


class Misuse(AssertionError):
    """What a GPU would punish later, or never."""


class CudaDouble:
    """The state of one GPU; `module` stands in for cuda.bindings.driver.

    Attributes:
        devices: (name, major, minor) of each, and with them multiprocessors and bytes of memory.
        driver: CUDA version that the driver runs; 0 is none.
        launches: How often a CUDA graph was launched.
        fail: Function name -> status name it gives the next time.
    """

    def __init__(
        self, devices=(("Test GPU", 8, 6),), driver=13000, memory=1 << 34, module=(28, 12 * 10**9)
    ):
        self.real = importlib.import_module(MODULE)
        self.devices, self.driver, self.memory, self.size = devices, driver, memory, module
        self.status = self.real.CUresult
        self.allocations = {}  # address -> (kind, buffer)
        self.kept = []  # freed memory: overwritten, and never used again
        self.streams = {}
        self.users = weakref.WeakKeyDictionary()  # what runs on a stream -> its handle
        self.graphs = {}
        self.recorded = {}
        self.launches = 0
        self.fail = {}
        self.calls = []
        self.misused = []  # what was noticed where nothing can be raised
        self.context = self.real.CUcontext(0x4000)
        self.retained = False
        self.current = threading.local()  # context, if the thread has one
        self.module = types.ModuleType(MODULE)
        self.module.__dict__.update(
            {n: v for n, v in vars(self.real).items() if not n.startswith("__")}
        )
        for name in dir(self):
            if name.startswith("cu") and name[2].isupper():
                assert hasattr(self.real, name), f"cuda-bindings has no {name}"
                setattr(self.module, name, self._watched(name))

    def _watched(self, name):
        function = getattr(self, name)

        def call(*arguments):
            self.calls.append(name)
            values = (None,) * (name in _RETURNING)
            if name in self.fail:
                if name == "cuStreamEndCapture":  # which ends the capture all the same
                    function(*arguments)
                return (getattr(self.status, self.fail.pop(name)), *values)
            if name not in _WITHOUT_CONTEXT and not hasattr(self.current, "context"):
                return (self.status.CUDA_ERROR_INVALID_CONTEXT, *values)
            captured = next((s for s in self.streams.values() if s.captured is not None), None)
            if captured and name not in _WHILE_CAPTURING:
                captured.broken = True
                return (self.status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, *values)
            return function(*arguments)

        return call

    @property
    def ok(self):
        return self.status.CUDA_SUCCESS

    # --- the device

    def cuInit(self, flags):
        if not self.driver:
            raise RuntimeError("Failed to dlopen libcuda.so.1")
        return (self.ok,) if self.devices else (self.status.CUDA_ERROR_NO_DEVICE,)

    def cuDriverGetVersion(self):
        return (self.ok, self.driver)

    def cuDeviceGetCount(self):
        return (self.ok, len(self.devices))

    def cuDeviceGet(self, index):
        if index >= len(self.devices):
            return (self.status.CUDA_ERROR_INVALID_DEVICE, None)
        return (self.ok, self.real.CUdevice(index))

    def cuDeviceGetName(self, size, device):
        return (self.ok, self.devices[int(device)][0].encode().ljust(size, b"\0"))

    def cuDeviceGetAttribute(self, attribute, device):
        _, major, minor = self.devices[int(device)]
        values = {
            "COMPUTE_CAPABILITY_MAJOR": major,
            "COMPUTE_CAPABILITY_MINOR": minor,
            "MULTIPROCESSOR_COUNT": self.size[0],
        }
        return (self.ok, values[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")])

    def cuDeviceTotalMem(self, device):
        return (self.ok, self.size[1])

    def cuDevicePrimaryCtxRetain(self, device):
        self.retained = True
        return (self.ok, self.context)

    def cuCtxSetCurrent(self, context):
        if not self.retained or int(context) != int(self.context):
            raise Misuse("a context that nobody holds")
        self.current.context = context
        return (self.ok,)

    def cuGetErrorString(self, status):
        return (self.ok, f"what {status.name} means".encode())

    # --- memory

    def _allocate(self, kind, size):
        if size > self.memory:
            return (self.status.CUDA_ERROR_OUT_OF_MEMORY, None)
        raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        buffer = raw[start : start + size]
        self.allocations[buffer.ctypes.data] = (kind, buffer)
        return (self.ok, buffer.ctypes.data)

    def cuMemAlloc(self, size):
        status, address = self._allocate("device", size)
        return (status, None if address is None else self.real.CUdeviceptr(address))

    def cuMemHostAlloc(self, size, flags):
        return self._allocate("host", size)

    def _free(self, kind, address):
        self.run_all()
        if address not in self.allocations or self.allocations[address][0] != kind:
            raise Misuse(f"freed {kind} memory that is not allocated")
        _, buffer = self.allocations.pop(address)
        buffer[:] = 0xFF
        self.kept.append(buffer)
        return (self.ok,)

    def cuMemFree(self, address):
        return self._free("device", address)

    def cuMemFreeHost(self, address):
        return self._free("host", address)

    def view(self, address, size, kind="device"):
        """The bytes at an address, which must lie in one live allocation of that kind."""
        for base, (found, buffer) in self.allocations.items():
            if base <= address and address + size <= base + len(buffer):
                if found != kind:
                    raise Misuse(f"expected {kind} memory at {address:#x}, found {found}")
                return buffer[address - base : address - base + size]
        raise Misuse(f"{size} bytes at {address:#x} are not in one live allocation")

    def cuMemsetD8(self, address, value, size):
        raise Misuse("on the default stream, for which a non-blocking one does not wait")

    def cuMemsetD8Async(self, address, value, size, handle):
        def work():
            self.view(address, size)[:] = value

        self.queue(handle, work)
        return (self.ok,)

    # --- streams

    def cuStreamCreate(self, flags):
        handle = self.real.CUstream(0x5000 + len(self.streams))
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

    def cuStreamSynchronize(self, handle):
        self.stream(handle).run()
        return (self.ok,)

    def cuStreamDestroy(self, handle):
        self.stream(handle).run()
        if int(handle) in self.users.values():
            raise Misuse("a stream was destroyed before the sessions that run on it")
        del self.streams[int(handle)]
        return (self.ok,)

    def _copy(self, destination, to, source, of, size, handle):
        def work():
            self.view(destination, size, to)[:] = self.view(source, size, of)

        self.queue(handle, work)
        return (self.ok,)

    def cuMemcpyHtoDAsync(self, destination, source, size, handle):
        return self._copy(destination, "device", source, "host", size, handle)

    def cuMemcpyDtoHAsync(self, destination, source, size, handle):
        return self._copy(destination, "host", source, "device", size, handle)

    def cuMemcpy3DAsync(self, p, handle):
        device = self.real.CUmemorytype.CU_MEMORYTYPE_DEVICE
        if (p.srcMemoryType, p.dstMemoryType) != (device, device):
            raise Misuse("the cache is copied on the device")
        copied = [
            (
                int(p.dstDevice) + (z * p.dstHeight + y) * p.dstPitch + p.dstXInBytes,
                int(p.srcDevice) + (z * p.srcHeight + y) * p.srcPitch,
            )
            for z in range(p.Depth)
            for y in range(p.Height)
        ]
        if p.dstXInBytes + p.WidthInBytes > p.dstPitch or p.WidthInBytes > p.srcPitch:
            return (self.status.CUDA_ERROR_INVALID_VALUE,)
        if p.Height > min(p.srcHeight, p.dstHeight):
            return (self.status.CUDA_ERROR_INVALID_VALUE,)
        width = p.WidthInBytes

        def work():
            for to, of in copied:
                self.view(to, width)[:] = self.view(of, width)

        self.queue(handle, work)
        return (self.ok,)

    # --- graphs

    def cuStreamBeginCapture(self, handle, mode):
        stream = self.stream(handle)
        if stream.waiting:
            raise Misuse("capture began before the warm-up was waited for")
        stream.captured, stream.broken = [], False
        return (self.ok,)

    def cuStreamEndCapture(self, handle):
        stream = self.stream(handle)
        work, stream.captured = stream.captured, None
        if stream.broken:
            return (self.status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
        graph = self.real.CUgraph(0x6000 + len(self.graphs))
        self.graphs[int(graph)] = work
        return (self.ok, graph)

    def cuGraphInstantiate(self, graph, flags):
        recorded = self.real.CUgraphExec(0x7000 + len(self.recorded))
        self.recorded[int(recorded)] = copy.copy(self.graphs[int(graph)])
        return (self.ok, recorded)

    def cuGraphDestroy(self, graph):
        self.graphs[int(graph)] = None
        return (self.ok,)

    def cuGraphUpload(self, recorded, handle):
        return (self.ok,)

    def cuGraphLaunch(self, recorded, handle):
        self.launches += 1
        for work in self.recorded[int(recorded)]:
            self.queue(handle, work)
        return (self.ok,)

    def cuGraphExecDestroy(self, recorded):
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
    "cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuStreamEndCapture", "cuGraphInstantiate",
    "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDeviceTotalMem",
    "cuDevicePrimaryCtxRetain",
)  # fmt: skip
_WITHOUT_CONTEXT = (
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName",
    "cuDeviceGetAttribute", "cuDeviceTotalMem", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
    "cuGetErrorString",
)  # fmt: skip
_WHILE_CAPTURING = (  # what a thread may call while one of its streams is captured
    "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpy3DAsync", "cuStreamEndCapture",
    "cuGetErrorString",
)  # fmt: skip


class Stream:
    """Work in order."""

    def __init__(self):
        self.waiting, self.captured, self.broken = [], None, False

    def run(self):
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()
