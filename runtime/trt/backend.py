"""TensorRT engines, driven without torch: plans are opened when first used, every shape is static,
memory is allocated once and its addresses set once. A step graph is warmed up, recorded as one
CUDA graph together with its copies from and to the host, and replayed.

R rows serve R unguided or R/2 guided images; a short batch repeats its last row. The KV cache is
one block a step graph, and a commit is one strided copy on the GPU.

Written after NVIDIA's documentation and held to it by doubles of TensorRT and CUDA in tests/; never
run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from m2kit import contract
from m2kit.errors import BackendError, InputError
from m2kit.manifest import Manifest
from m2kit.records import JsonObject
from m2kit.runtime.backend import CLOSED, Opening, Steps
from m2kit.runtime.cuda import Gpu, Memory
from m2kit.runtime.device import Device, find_device
from m2kit.runtime.step_memory import HostSide
from m2kit.runtime.target import check_machine
from m2kit.runtime.trt.caches import COMPILED, CompiledKernels, cache_file
from m2kit.runtime.trt.library import TENSORRT_RTX, error_log, load_tensorrt
from m2kit.runtime.trt.plan import OpenedPlan
from m2kit.runtime.trt.steps import StepGraphs


class TensorRTBackend:
    """The Backend protocol over TensorRT plans. One thread; one generation at a time."""

    def __init__(self, folder: Path, manifest: Manifest, opening: Opening) -> None:
        """Look for the GPU, then for TensorRT, and compare both with what the engine is for; in
        the opening is nothing to choose.

        Raises:
            BackendError: No GPU, driver or TensorRT that can run it.
            FolderError: Built for another machine.
        """
        build = manifest.built
        self.name = build.backend
        self._folder, self._manifest = folder, manifest
        device = find_device(f"{folder}, an engine for {self.name},")
        self.device = str(device)
        self._trt = load_tensorrt(self.name)
        check_machine(folder, manifest, str(self._trt.__version__), device)
        self._gpu = Gpu()
        self._log = error_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        if build.options.version_compatible:  # such a plan brings its own runtime, which is code
            self._runtime.engine_host_code_allowed = True
        self._compiled = self._kernels(device)
        self._rows = build.rows or 2
        self.largest_rows, self.image_sizes, self.threads = self._rows, build.image_sizes, None
        self._tokenizer: dict[tuple[str, tuple[int, ...]], _TokenizerGraph] = {}
        self._steps: StepGraphs | None = None
        self._closed = False

    def images_at_once(self, size: tuple[int, ...]) -> int:
        """As many as the engine was built for."""
        return self._rows // 2

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, quantizer or decoder on named inputs; returns its named outputs.

        Raises:
            InputError: More images than the engine takes, or an image size it was not built for.
        """
        self._check_open()
        (array,) = feeds.values()
        self._check_batch(len(array), self._rows // 2, "images")
        size = tuple(map(int, array.shape[2:]))
        if graph != contract.ENCODER:
            size = self._manifest.spec.size_of_grid(size)
        key = (graph, size)
        if key in self._tokenizer:
            return self._tokenizer[key].run(feeds)
        self._tokenizer[key] = self._open_tokenizer(graph, size)
        outputs = self._tokenizer[key].run(feeds)
        self._keep_kernels()
        return outputs

    def open_steps(self, rows: int) -> Steps:
        """The step graphs for `rows` rows (R); steps opened before are not used afterwards.

        Raises:
            InputError: More rows than the engine was built for.
        """
        self._check_open()
        self._check_batch(rows, self._rows, "rows (two an image with guidance)")
        if self._steps is None:
            self._steps = StepGraphs(
                self._gpu, {g: self._open_plan(g, {"R": self._rows}) for g in contract.STEP_GRAPHS}
            )
            self._keep_kernels()
        return self._steps.open(rows)

    def active(self) -> JsonObject:
        """What runs and how: versions, GPU, CUDA graphs, and the layers of the networks the plans
        were built from, by type and precision, which strong typing binds the plans to."""
        steps = self._steps.graphs if self._steps else {}
        recorded = {graph: step.recorded for graph, step in steps.items()}
        kernels = {"kernels": self._compiled.state} if self._compiled else {}
        return {
            "backend": f"{self.name} {self._trt.__version__}",
            "gpu": self.device,
            "cuda_graphs": recorded or "no step graph was opened",
            **kernels,
            "parsed_layers": {g: plan.layers for g, plan in self._manifest.built.plans.items()},
        }

    def close(self) -> None:
        """Release plans, memory and stream."""
        if self._closed:
            return
        self._closed = True
        self._gpu.finish()
        for graph in self._tokenizer.values():
            graph.close()
        self._tokenizer.clear()
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self._gpu.close()

    def _open_plan(
        self, graph: str, sizes: Mapping[str, int], image_size: tuple[int, ...] | None = None
    ) -> OpenedPlan:
        """Deserialize one plan and check that it is what the contract says."""
        io = contract.graph_io(self._manifest.spec, graph)
        compute = self._manifest.precision.compute
        tensors = {
            tensor.name: (tensor.fixed_shape(sizes), tensor.numpy_dtype(compute))
            for tensor in (*io.inputs, *io.outputs)
        }
        return OpenedPlan(
            self._trt,
            self._runtime,
            self._log,
            self._folder / contract.plan_file(graph, image_size),
            io,
            tensors,
            rebuild=self._manifest.rebuild_command(self._folder),
            compiled=self._compiled,
        )

    def _kernels(self, device: Device) -> CompiledKernels | None:
        """What TensorRT-RTX compiled on this GPU with this driver; TensorRT's plans hold theirs."""
        if self.name != TENSORRT_RTX:
            return None
        driver = f"driver {self._gpu.call('cuDriverGetVersion')}"
        version = str(self._trt.__version__)
        return CompiledKernels(cache_file(COMPILED, self.name, version, device, driver))

    def _keep_kernels(self) -> None:
        """Called when something ran for the first time: then all it needs is compiled."""
        if self._compiled is not None:
            self._compiled.save()

    def _open_tokenizer(self, graph: str, size: tuple[int, ...]) -> _TokenizerGraph:
        if size not in (self.image_sizes or ()):
            known = " or ".join(" x ".join(map(str, known)) for known in self.image_sizes or ())
            raise InputError(
                f"this engine takes images of {known} pixels, found {' x '.join(map(str, size))}; "
                f"build it with `{self._manifest.rebuild_command(self._folder, (size,))}`"
            )
        dimensions = {"B": self._rows // 2, **contract.image_dimensions(self._manifest.spec, size)}
        return _TokenizerGraph(self._gpu, self._open_plan(graph, dimensions, size))

    def _check_batch(self, found: int, largest: int, what: str) -> None:
        if found > largest:
            raise InputError(
                f"this engine takes {largest} {what} at once, asked for {found}: take a batch of "
                f"{self._rows // 2}, or build it for a larger one",
                option=f"--batch {self._rows // 2}",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(CLOSED)
        self._gpu.enter()


class _TokenizerGraph:
    """Encoder, lfq or decoder for one image size."""

    def __init__(self, gpu: Gpu, plan: OpenedPlan) -> None:
        """Allocate and bind."""
        self._gpu, self._plan = gpu, plan
        self._memory = Memory(gpu, plan.tensors, {"scratch": plan.scratch_bytes})
        try:
            addresses = self._memory.addresses
            plan.bind(gpu, HostSide(self._memory, plan.io), addresses, addresses["scratch"])
        except BackendError:
            self.close()
            raise

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a batch, filled up with repeats of its last image."""
        images = len(next(iter(feeds.values())))
        for name, feed in feeds.items():
            self._plan.host.inputs[name][:images] = feed
            self._plan.host.inputs[name][images:] = feed[-1]
        self._plan.queue()
        self._gpu.synchronize()
        return {name: array[:images].copy() for name, array in self._plan.host.outputs.items()}

    def close(self) -> None:
        """Release plan and memory."""
        self._plan.close()
        self._memory.free()
