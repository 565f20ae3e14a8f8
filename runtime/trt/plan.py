"""One TensorRT plan, opened: checked against the graph contract, with a context whose tensors and
working memory lie at addresses that are set once.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2kit.contract import GraphIO
from m2kit.errors import BackendError
from m2kit.runtime.cuda import Gpu
from m2kit.runtime.step_memory import HostSide
from m2kit.runtime.trt.caches import CompiledKernels
from m2kit.runtime.trt.library import out_of_memory

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}  # numpy's and TensorRT's names


class OpenedPlan:
    """An opened plan with its context.

    Attributes:
        tensors: Name -> (shape, dtype) of every input and output.
        scratch_bytes: Memory that its context needs while it runs.
        host: What the host writes and reads of them, once it is bound.
    """

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        log: Any,
        path: Path,
        io: GraphIO,
        tensors: dict[str, tuple[tuple[int, ...], str]],
        rebuild: str,
        compiled: CompiledKernels | None,
    ) -> None:
        """Deserialize, check, and create a context whose memory the caller gives; `rebuild` is the
        command that builds the engine again, `compiled` what TensorRT-RTX looks kernels up in."""
        self.name, self.io, self.tensors, self._log = path.stem, io, tensors, log
        self._rebuild = rebuild
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason, cure = log.reason(), f"build the engine again here with `{rebuild}`"
            if out_of_memory(reason):
                cure = "close other programs on the GPU, or build the engine for a smaller batch"
            raise BackendError(f"TensorRT cannot open {path}: {reason}; {cure}")
        self._check(trt, path)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if compiled is None:
            self.context = self._engine.create_execution_context(strategy)
        else:
            self.context = compiled.context(self._engine, strategy)
        if self.context is None:
            raise BackendError(f"TensorRT cannot prepare {self.name}: {log.reason()}")
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def _check(self, trt: Any, path: Path) -> None:
        engine = self._engine
        found = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            shape = tuple(engine.get_tensor_shape(name))
            mode, dtype = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
            found[name] = (mode.name, shape, dtype.name)
        expected = {}
        for mode, part in (("INPUT", self.io.inputs), ("OUTPUT", self.io.outputs)):
            for tensor in part:
                shape, dtype = self.tensors[tensor.name]
                expected[tensor.name] = (mode, shape, _DTYPES[dtype])
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                raise BackendError(
                    f"{path} does not fit this m2kit: expected {name} as {expected.get(name)}, "
                    f"found {found.get(name)}; build the engine again with `{self._rebuild}`"
                )

    def bind(self, gpu: Gpu, host: HostSide, addresses: Mapping[str, int], scratch: int) -> None:
        """Set the address of every tensor, and of the memory the context works in."""
        self._gpu, self.host = gpu, host
        self.context.set_device_memory(scratch, self.scratch_bytes)
        for name in self.tensors:
            if not self.context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"TensorRT refuses the address of {name}: {self._log.reason()}")

    def queue(self) -> None:
        """Queue the copy of the inputs, one run, and the copy of the outputs."""
        self.host.upload()
        if not self.context.execute_async_v3(self._gpu.stream):
            reason = self._log.reason()
            raise BackendError(
                f"TensorRT failed in {self.name}: {reason}; `m2kit doctor` shows versions"
            )
        self.host.download()

    def close(self) -> None:
        """Release the context before its engine."""
        del self.context
        del self._engine
