"""The step graphs on ONNX Runtime, bound once (IO binding) to what they read and write: a run moves
no KV cache between host and GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.contract import PRESENT, GraphIO
from m2kit.errors import BackendError
from m2kit.runtime.backend import CLOSED, POSITION_INPUTS, Buffers, zeros
from m2kit.runtime.cuda import Gpu
from m2kit.runtime.step_memory import StepMemory


class Sessions(Protocol):
    """The backend, as its steps know it."""

    def io(self, graph: str) -> GraphIO:
        """What the file of a graph takes and gives."""

    def session(self, graph: str) -> Any:
        """The session of a graph."""

    def run_bound(self, session: Any, binding: Any) -> None:
        """Run a session on what it is bound to."""


class HostStep:
    """A step graph on the CPU, over numpy arrays.

    Attributes:
        cache: (2L, R, H, S, d), read by the portable lowering, whose commit is a slice assignment,
            and written by the fused one.
    """

    def __init__(
        self, sessions: Sessions, graph: str, rows: int, compute: str, shared: Buffers
    ) -> None:
        """Allocate and bind every input and output of the graph for `rows` rows; inputs that are
        `shared` with another graph are bound as they are."""
        io = sessions.io(graph)
        self._sessions, self._session = sessions, sessions.session(graph)
        self._binding: Any = self._session.io_binding()
        past = [tensor for tensor in io.inputs if contract.is_past(tensor.name)]
        self.cache = np.zeros((len(past), *past[0].fixed_shape({"R": rows})), compute)
        caches = {tensor.name: self.cache[index] for index, tensor in enumerate(past)}
        cache_outputs = {contract.updated(name): array for name, array in caches.items()}
        self._present: npt.NDArray[Any] | None = None  # where the graph writes in place
        for tensor in io.outputs:
            if tensor.name == PRESENT:
                self._present = np.zeros(tensor.fixed_shape({"R": rows}), compute)
                cache_outputs = {PRESENT: self._present}
        self.inputs = zeros([t for t in io.inputs if t.name not in caches], rows, compute) | shared
        others = [t for t in io.outputs if t.name not in cache_outputs]
        self.outputs = zeros(others, rows, compute)
        for name, array in (caches | self.inputs).items():
            _bind_array(self._binding.bind_input, name, array)
        for name, array in (cache_outputs | self.outputs).items():
            _bind_array(self._binding.bind_output, name, array)
        self._position = self.inputs.pop(POSITION_INPUTS[graph])

    def reset(self) -> None:
        """Begin a new sequence; rows written before are masked, so nothing is cleared."""

    def run(self, position: int) -> None:
        """Compute one position; it sees the positions committed before it."""
        self._position[0] = position
        self._sessions.run_bound(self._session, self._binding)

    def commit(self, position: int) -> None:
        """Append what the last run computed to the cache, at `position`."""
        if self._present is not None:
            self.cache[:, :, :, position] = self._present[:, :, :, 0]

    def close(self) -> None:
        """Let the session go."""
        self._binding = self._session = None


class CudaSteps:
    """Both step graphs on a GPU, over one block of its memory, which is given back when nobody
    refers to the steps any more. All is done in the order of the stream on which the sessions run:
    the copy of what the host wrote, the graph, the copy of what it reads, the commit."""

    def __init__(self, sessions: Sessions, gpu: Gpu, rows: int, compute: str) -> None:
        """Allocate for `rows` rows."""
        self.sessions, self.gpu = sessions, gpu
        ios = {graph: sessions.io(graph) for graph in contract.STEP_GRAPHS}
        self.tensors = {
            graph: {
                tensor.name: (tensor.fixed_shape({"R": rows}), tensor.numpy_dtype(compute))
                for tensor in (*io.inputs, *io.outputs)
            }
            for graph, io in ios.items()
        }
        self.memory = StepMemory(gpu, {g: (io, self.tensors[g]) for g, io in ios.items()})
        self.free = weakref.finalize(self, self.memory.memory.free)
        self.free.atexit = False  # the driver frees it, if it is still there


class CudaStep:
    """A step graph on a GPU. An input that is bound on the host would be copied when it is bound
    and never again, so all are bound where they lie on the GPU. Inputs may be written again once
    the next intra run has returned."""

    def __init__(self, steps: CudaSteps, graph: str) -> None:
        """Bind every input and output of the graph."""
        self._steps: CudaSteps | None = steps
        self._session = steps.sessions.session(graph)
        self._binding: Any = self._session.io_binding()
        io, addresses = steps.sessions.io(graph), steps.memory.addresses(graph)
        for bind, tensors in (
            (self._binding.bind_input, io.inputs),
            (self._binding.bind_output, io.outputs),
        ):
            for tensor in tensors:
                shape, dtype = steps.tensors[graph][tensor.name]
                bind(tensor.name, "cuda", 0, np.dtype(dtype), shape, addresses[tensor.name])
        self._host = steps.memory.host(graph)
        self._commits = steps.memory.commits(graph)
        self.inputs, self.outputs = dict(self._host.inputs), self._host.outputs
        self._position = self.inputs.pop(POSITION_INPUTS[graph])

    def reset(self) -> None:
        """Begin a new sequence; rows written before are masked, so nothing is cleared."""

    def run(self, position: int) -> None:
        """Compute one position; it sees the positions committed before it.

        Raises:
            BackendError: The engine was closed, or ONNX Runtime or CUDA failed.
        """
        if self._steps is None:
            raise BackendError(CLOSED)
        self._position[0] = position
        self._host.upload()
        self._steps.sessions.run_bound(self._session, self._binding)
        if self.outputs:  # logits, which are read
            self._host.download()
            self._steps.gpu.synchronize()

    def commit(self, position: int) -> None:
        """Append what the last run computed to the cache, at `position`: one copy on the GPU."""
        self._commits[position]()

    def close(self) -> None:
        """Let session and memory go."""
        if self._steps is not None:
            self._steps.free()
        self._binding = self._session = self._steps = None


def _bind_array(bind: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
