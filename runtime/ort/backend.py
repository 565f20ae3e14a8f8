"""ONNX Runtime: runs the graphs of a bundle or engine folder on a CPU or through CUDA.

On a CPU the onnxruntime lowering of the step graphs is taken where the folder has it: it adds the
new row to the cache in place. With the CUDA provider cache and hidden state stay on the GPU, and
sessions run on m2kit's own stream, on which commits and the copies of ids and logits are queued.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.errors import BackendError, install, require
from m2kit.host import available_cores, host_name, release_freed_memory
from m2kit.manifest import Manifest
from m2kit.records import JsonObject
from m2kit.runtime.backend import (
    CLOSED,
    CPU,
    CUDA,
    Backend,
    Opening,
    Steps,
)
from m2kit.runtime.cuda import Gpu
from m2kit.runtime.device import probe
from m2kit.runtime.ort.library import load_onnxruntime, path_text
from m2kit.runtime.ort.steps import CudaStep, CudaSteps, HostStep

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}
_PIXELS_AT_ONCE = 256 * 256  # of encoder and decoder
_AS_IT_IS = Opening()


def usable_providers() -> tuple[str, ...]:
    """The providers of the installed onnxruntime that can start here; its wheel for CUDA lists CUDA
    where there is no GPU too."""
    ort = load_onnxruntime()
    has_cuda = PROVIDERS[CUDA] in ort.get_available_providers() and probe()[0]
    return (CPU, CUDA) if has_cuda else (CPU,)


class OnnxRuntimeBackend(Backend):
    """The Backend protocol over ONNX Runtime sessions, opened when first used."""

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, opening: Opening = _AS_IT_IS) -> None:
        """Prepare to open the graphs of a bundle or engine: by default on the CPU, in as many
        threads as this process has cores, and fused there where the folder has that lowering.

        Raises:
            BackendError: onnxruntime is not installed, that provider is missing or cannot start, or
                the folder holds nothing for it.
        """
        self.ort = load_onnxruntime()
        self._folder, self._manifest = folder, manifest
        self._on_cpu = (opening.provider or CPU) == CPU
        self.compute = manifest.precision.compute  # float32 or float16
        self._host_threads = opening.threads or available_cores()
        self._provider = _provider(self.ort, opening.provider or CPU)
        self._fused = set(manifest.fused)
        if opening.lowering == contract.PORTABLE or not self._on_cpu:
            self._fused -= set(manifest.lowerings[contract.PORTABLE])
        if manifest.precision.quantized and not self._on_cpu:
            raise BackendError(
                f"this engine ({manifest.precision.value}) is for a CPU alone; open it with the "
                f"provider cpu, or build one in fp32 from {manifest.built.bundle}",
                option="--provider cpu",
            )
        self._sessions: dict[str, Any] = {}
        self._steps: weakref.WeakSet[HostStep | CudaStep] = weakref.WeakSet()
        self._closed = False
        self._gpu = None if self._on_cpu else _first_gpu()
        if not self._on_cpu:  # the smallest graph tells whether the provider starts
            try:
                self.session(manifest.spec.tokenizer.quantizer)
            except BackendError:
                self.close()
                raise

    @property
    def device(self) -> str:
        """The processor, or the GPU."""
        if self._on_cpu:
            return host_name()
        devices, _ = probe()
        return f"{devices[0] if devices else 'a GPU'} through CUDA"

    @property
    def threads(self) -> int | None:
        """Threads inside an operator; None where the GPU computes."""
        return self._host_threads if self._on_cpu else None

    def images_at_once(self, size: tuple[int, ...]) -> int:
        """On a CPU large images are run one by one: together they are a quarter slower, and take
        memory for each."""
        if not self._on_cpu:
            return super().images_at_once(size)
        return max(1, _PIXELS_AT_ONCE // math.prod(size))

    def lowering(self, graph: str) -> str:
        """The lowering in which a graph is run."""
        return contract.ONNXRUNTIME if graph in self._fused else contract.PORTABLE

    def path(self, graph: str) -> Path:
        """The file of a graph."""
        return self._folder / self._manifest.graph_file(self.lowering(graph), graph)

    def source(self, graph: str) -> str | bytes:
        """What a graph's session is made from: its file's path, or a model in memory.

        Raises:
            FolderError: The path is not UTF-8.
        """
        return path_text(self.path(graph))

    def io(self, graph: str) -> contract.GraphIO:
        """What the file of a graph takes and gives."""
        return contract.graph_io(self._manifest.spec, graph, self.lowering(graph))

    def options(self) -> Any:
        """Session options of every graph: its threads stop spinning when a run ends, or those of
        the inter step would take the processor from the intra step, and both be half as fast."""
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self._host_threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def session(self, graph: str) -> Any:
        """The session of one graph.

        Raises:
            BackendError: ONNX Runtime cannot load it, or silently left the provider asked for.
            FolderError: Its path is not UTF-8.
        """
        self.check_open()
        if graph in self._sessions:
            return self._sessions[graph]
        options, source = self.options(), self.source(graph)
        try:
            provider = (self._provider, self._provider_options())
            session = self.ort.InferenceSession(source, options, providers=[provider])
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise BackendError(
                f"ONNX Runtime cannot load {self.path(graph)}: {_first_line(error)}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime fell back to {session.get_providers()[0]}: {self._provider} could "
                "not start (no GPU, driver or CUDA libraries); use the provider cpu, or mend CUDA",
                option="--provider cpu",
            )
        self._sessions[graph] = session
        return session

    def _provider_options(self) -> dict[str, str]:
        """float32 means float32: TF32 keeps 10 bits of a product's mantissa. And all runs in the
        order of one stream."""
        if self._gpu is None:
            return {}
        return {"use_tf32": "0", "user_compute_stream": str(self._gpu.stream)}

    def check_open(self) -> None:
        """Refuse to go on after `close`.

        Raises:
            BackendError: The engine was closed.
        """
        if self._closed:
            raise BackendError(CLOSED)

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, lfq or decoder on named inputs; returns its named outputs."""
        names = [tensor.name for tensor in self.io(graph).outputs]
        session = self.session(graph)
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise _failure(graph, error) from error

    def open_steps(self, rows: int) -> Steps:
        """Allocate and bind the step graphs for `rows` rows (R)."""
        if self._gpu is not None:
            on_gpu = CudaSteps(self, self._gpu, rows, self.compute)
            first, second = (CudaStep(on_gpu, graph) for graph in contract.STEP_GRAPHS)
            self._steps.update((first, second))
            return Steps(first, second)
        inter = HostStep(self, contract.INTER_STEP, rows, self.compute, shared={})
        hidden = {contract.HIDDEN: inter.outputs[contract.HIDDEN]}
        intra = HostStep(self, contract.INTRA_STEP, rows, self.compute, shared=hidden)
        self._steps.update((inter, intra))

        def narrow(kept: npt.NDArray[np.int64], position: int) -> Steps:
            narrower = self.open_steps(len(kept))
            assert isinstance(narrower.inter, HostStep)
            narrower.inter.cache[:, :, :, :position] = inter.cache[:, kept, :, :position]
            return narrower

        return Steps(inter, intra, narrow)

    def run_bound(self, session: Any, binding: Any) -> None:
        """Run a session on what it is bound to.

        Raises:
            BackendError: The engine was closed, or ONNX Runtime failed.
        """
        self.check_open()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise _failure("a step", error) from error

    def active(self) -> JsonObject:
        """What runs and how."""
        return {
            "backend": f"{self.name} {self.ort.__version__}",
            "provider": self._provider,
            "threads": self._host_threads,
            "precision": self._manifest.precision.value,
            "fused": sorted(self._fused),
        }

    def close(self) -> None:
        """Drop the sessions, then the stream on which they ran, and give their memory back."""
        opened, self._closed = not self._closed, True
        if self._gpu is not None and opened:
            self._gpu.finish()
        for step in self._steps:  # which a caller may still hold
            step.close()
        self._sessions.clear()
        if self._gpu is not None and opened:
            self._gpu.close()
        release_freed_memory()


def _first_gpu() -> Gpu:
    """The GPU of the provider cuda.

    Raises:
        BackendError: No cuda-bindings, driver or GPU.
    """
    require("cuda.bindings.driver", extra="gpu", what="the provider cuda")
    devices, reason = probe()
    if not devices:
        raise BackendError(
            f"the provider cuda needs an NVIDIA GPU: {reason}; use the provider cpu",
            option="--provider cpu",
        )
    return Gpu()


def _provider(ort: Any, name: str) -> str:
    if name not in PROVIDERS:
        raise BackendError(f"provider must be one of {', '.join(PROVIDERS)}, found {name!r}")
    provider = PROVIDERS[name]
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider} (it has "
            f"{', '.join(ort.get_available_providers())}): pip uninstall onnxruntime, then "
            f"{install('gpu')} (the two wheels must not be installed together)"
        )
    return provider


def _failure(what: str, error: Exception) -> BackendError:
    reason = _first_line(error)
    if "alloc" in reason.lower():
        cure = "take a smaller batch or smaller images"
        return BackendError(f"ONNX Runtime failed in {what}: {reason}; {cure}", option="--batch")
    return BackendError(f"ONNX Runtime failed in {what}: {reason}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
