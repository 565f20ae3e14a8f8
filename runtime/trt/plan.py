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
from m2kit.runtime.trt.library import out_of_memory

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}  # numpy's and TensorRT's names


class OpenedPlan:
    """An opened plan with its context.

    Attributes:
        tensors: Name -> (shape, dtype) of every input and output.
        scratch_bytes: Memory that its context needs while it runs.
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
    ) -> None:
        """Deserialize, check, and create a context whose memory the caller gives; `rebuild` is the
        command that builds the engine again."""
        self.name, self.io, self.tensors, self._log = path.stem, io, tensors, log
        self._rebuild = rebuild
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason, cure = _last(log), f"build the engine again here with `{rebuild}`"
            if out_of_memory(reason):
                cure = "close other programs on the GPU, or build the engine with a smaller --batch"
            raise BackendError(f"TensorRT cannot open {path}: {reason}; {cure}")
        self._check(trt, path)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.context = self._engine.create_execution_context(strategy)
        if self.context is None:
            raise BackendError(f"TensorRT cannot prepare {self.name}: {_last(log)}")
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def _check(self, trt: Any, path: Path) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (
                engine.get_tensor_mode(name).name,
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name).name,
            )
            for name in names
        }
        expected = {
            tensor.name: (mode, shape, _DTYPES[dtype])
            for mode, part in (("INPUT", self.io.inputs), ("OUTPUT", self.io.outputs))
            for tensor in part
            for shape, dtype in [self.tensors[tensor.name]]
        }
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                raise BackendError(
                    f"{path} does not fit this m2kit: expected {name} as {expected.get(name)}, "
                    f"found {found.get(name)}; build the engine again with `{self._rebuild}`"
                )

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Set the address of every tensor, and of the memory the context works in."""
        self.context.set_device_memory(scratch, self.scratch_bytes)
        for name in self.tensors:
            if not self.context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"TensorRT refuses the address of {name}: {_last(self._log)}")

    def enqueue(self, stream: int) -> None:
        """Queue one run."""
        if not self.context.execute_async_v3(stream):
            raise BackendError(
                f"TensorRT failed in {self.name}: {_last(self._log)}; `m2kit doctor` shows versions"
            )

    def close(self) -> None:
        """Release the context before its engine."""
        del self.context
        del self._engine


def _last(log: Any) -> str:
    return log.errors[-1][:300] if log.errors else "it gives no reason"
