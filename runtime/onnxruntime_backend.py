"""ONNX Runtime: runs the graphs of a bundle or engine folder on a CPU or through CUDA.

Step graphs are bound once to numpy buffers (IO binding), the KV cache is one array. On a CPU the
onnxruntime lowering is taken where the folder has it: it adds the new row in place. A commit of the
portable one is a slice assignment. With the CUDA provider the same host buffers are bound, so the
cache travels at every step: correct, not fast. That provider has not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.errors import BackendError, require
from m2kit.manifest import Manifest
from m2kit.memory import release_freed_memory
from m2kit.processor import available_cores
from m2kit.runtime.backend import AnyShape, Steps
from m2kit.tolerances import QUANTIZED_TOLERANCES

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# float32 means float32: TF32 keeps 10 bits of a product's mantissa.
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
# A session's threads stop spinning when its run ends: otherwise those of the inter step take the
# processor from the intra step, and both are half as fast.
_SESSION_OPTIONS = {"session.force_spinning_stop": "1"}
_PIXELS_AT_ONCE = 256 * 256  # of encoder and decoder


class OnnxRuntimeBackend(AnyShape):
    """The Backend protocol over ONNX Runtime sessions, opened when first used."""

    name = "onnxruntime"

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        fused: bool = True,
    ) -> None:
        """Prepare to open the graphs of a folder.

        Args:
            folder: A bundle or engine folder.
            manifest: Its manifest.
            provider: "cpu" or "cuda".
            threads: Threads inside an operator; None is as many as this process has cores.
            fused: Take the onnxruntime lowering on a CPU, where the folder has it.

        Raises:
            BackendError: onnxruntime is not installed, that provider is missing or cannot start, or
                the folder holds nothing for it.
        """
        self.ort = require("onnxruntime", extra="cpu", what="the onnxruntime backend")
        self.ort.set_default_logger_severity(4)  # errors come as exceptions; no second voice
        self._folder, self._manifest = folder, manifest
        self.threads = threads or available_cores()
        self._provider = _provider(self.ort, provider)
        self._fused = manifest.lowerings.get(contract.ONNXRUNTIME, {})
        portable = manifest.lowerings[contract.PORTABLE]
        if not fused or provider != "cpu":
            self._fused = {g: entry for g, entry in self._fused.items() if g not in portable}
        if manifest.precision in QUANTIZED_TOLERANCES and provider != "cpu":
            raise BackendError(
                f"this engine ({manifest.precision}) is for a CPU alone; use "
                "--provider cpu, or `m2kit build-engine --precision fp32`"
            )
        self._sessions: dict[str, Any] = {}
        self._closed = False
        if provider != "cpu":
            self.session(contract.LFQ)  # the smallest graph tells whether the provider starts

    def lowering(self, graph: str) -> str:
        """The lowering in which a graph is run."""
        return contract.ONNXRUNTIME if graph in self._fused else contract.PORTABLE

    def path(self, graph: str) -> Path:
        """The file of a graph."""
        return self._folder / self._manifest.graph_file(self.lowering(graph), graph)

    def io(self, graph: str) -> contract.GraphIO:
        """What the file of a graph takes and gives."""
        return contract.graph_io(self._manifest.spec, graph, self.lowering(graph))

    def compute(self, graph: str) -> str:
        """float32 or float16: the compute type of a graph's file."""
        return str(self._manifest.lowerings[self.lowering(graph)][graph]["compute"])

    def options(self) -> Any:
        """Session options of every graph."""
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        for name, value in _SESSION_OPTIONS.items():
            options.add_session_config_entry(name, value)
        return options

    def session(self, graph: str) -> Any:
        """The session of one graph.

        Raises:
            BackendError: ONNX Runtime cannot load it, or silently left the provider asked for.
        """
        if self._closed:
            raise BackendError("the engine was closed; open it again with m2kit.open_engine")
        if graph in self._sessions:
            return self._sessions[graph]
        options, path = self.options(), self.path(graph)
        try:
            provider = (self._provider, _PROVIDER_OPTIONS.get(self._provider, {}))
            session = self.ort.InferenceSession(path, options, providers=[provider])
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise BackendError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime fell back to {session.get_providers()[0]}: {self._provider} could "
                "not start (no GPU, driver or CUDA libraries); use --provider cpu or mend CUDA"
            )
        self._sessions[graph] = session
        return session

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, lfq or decoder on named inputs; returns its named outputs.

        On a CPU large images are run one by one: together they are a quarter slower, and take
        memory for each.
        """
        names = [tensor.name for tensor in self.io(graph).outputs]
        session = self.session(graph)
        (fed,) = feeds.values()
        at_once = len(fed)
        if self._provider == PROVIDERS["cpu"]:
            at_once = max(1, _PIXELS_AT_ONCE // self._pixels(graph, fed.shape))
        try:
            parts = [
                session.run(names, {name: fed[start : start + at_once] for name in feeds})
                for start in range(0, len(fed), at_once)
            ]
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise _failure(graph, error) from error
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(names, joined, strict=True))

    def _pixels(self, graph: str, shape: tuple[int, ...]) -> int:
        """Of one image that a graph takes or gives."""
        factor = 1 if graph == contract.ENCODER else self._manifest.spec.tokenizer.downsampling
        return shape[-2] * shape[-1] * factor**2

    def open_steps(self, rows: int) -> Steps:
        """Allocate and bind the step graphs for `rows` rows (R)."""
        return OnnxRuntimeSteps(self, rows)

    def active(self) -> dict[str, Any]:
        """What runs and how."""
        return {
            "backend": f"{self.name} {self.ort.__version__}",
            "provider": self._provider,
            "threads": self.threads,
            "precision": self._manifest.precision,
            "fused": sorted(self._fused),
        }

    def close(self) -> None:
        """Drop the sessions and give their memory back."""
        self._closed = True
        self._sessions.clear()
        release_freed_memory()


class OnnxRuntimeSteps:
    """Both step graphs; the hidden buffer of the inter step is an input of the intra step."""

    def __init__(self, backend: OnnxRuntimeBackend, rows: int) -> None:
        """Allocate and bind."""
        self.inter = OnnxRuntimeStep(
            backend.session(contract.INTER_STEP),
            backend.io(contract.INTER_STEP),
            backend.compute(contract.INTER_STEP),
            rows,
            contract.POSITION,
            shared={},
        )
        self.intra = OnnxRuntimeStep(
            backend.session(contract.INTRA_STEP),
            backend.io(contract.INTRA_STEP),
            backend.compute(contract.INTRA_STEP),
            rows,
            contract.SUB_POSITION,
            shared={contract.HIDDEN: self.inter.outputs[contract.HIDDEN]},
        )


class OnnxRuntimeStep:
    """One step graph: buffers bound once, the cache one array (2L, R, H, S, d)."""

    def __init__(
        self,
        session: Any,
        io: contract.GraphIO,
        compute: str,
        rows: int,
        position_name: str,
        shared: dict[str, npt.NDArray[Any]],
    ) -> None:
        """Allocate and bind every input and output of the graph for `rows` rows."""
        self._session = session
        self._binding = session.io_binding()
        past = [tensor for tensor in io.inputs if contract.is_past(tensor.name)]
        self.cache = np.zeros((len(past), *_shape(past[0], rows)), compute)
        caches = {tensor.name: self.cache[index] for index, tensor in enumerate(past)}
        own: dict[str, npt.NDArray[Any]] = {
            tensor.name: np.zeros(_shape(tensor, rows), _dtype(tensor, compute))
            for tensor in io.inputs
            if tensor.name not in caches and tensor.name not in shared
        }
        in_place = {contract.updated(name): array for name, array in caches.items()}
        self.outputs: dict[str, npt.NDArray[Any]] = {
            tensor.name: np.zeros(_shape(tensor, rows), _dtype(tensor, compute))
            for tensor in io.outputs
            if tensor.name not in in_place
        }
        self._present = self.outputs.get(contract.PRESENT)  # None: the graph writes in place
        if self._present is not None:
            in_place = {}
        for name, array in {**own, **shared, **caches}.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in {**self.outputs, **in_place}.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._position = own.pop(position_name)
        self.inputs = {**own, **shared}

    def reset(self) -> None:
        """Begin a new sequence; rows written before are masked, so nothing is cleared."""

    def run(self, position: int) -> None:
        """Compute one position; it sees the positions committed before it."""
        self._position[0] = position
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise _failure("a step", error) from error

    def commit(self, position: int) -> None:
        """Append what the last run computed to the cache, at `position`."""
        if self._present is not None:
            self.cache[:, :, :, position] = self._present[:, :, :, 0]


def _shape(tensor: contract.TensorSpec, rows: int) -> tuple[int, ...]:
    return tuple(rows if isinstance(size, str) else size for size in tensor.shape)


def _dtype(tensor: contract.TensorSpec, compute: str) -> str:
    return compute if tensor.dtype == "compute" else tensor.dtype


def _provider(ort: Any, name: str) -> str:
    if name not in PROVIDERS:
        raise BackendError(f"provider must be one of {', '.join(PROVIDERS)}, found {name!r}")
    provider = PROVIDERS[name]
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider} (it has "
            f"{', '.join(ort.get_available_providers())}): pip uninstall onnxruntime, then "
            "pip install 'm2kit[gpu]' (the two wheels must not be installed together)"
        )
    return provider


def _failure(what: str, error: Exception) -> BackendError:
    reason = _first_line(error)
    cure = "lower --batch or the image size" if "alloc" in reason.lower() else "see the reason"
    return BackendError(f"ONNX Runtime failed in {what}: {reason}; {cure}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
