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
from m2kit.contract import TensorSpec
from m2kit.errors import BackendError, InputError
from m2kit.manifest import Manifest
from m2kit.runtime.backend import Steps
from m2kit.runtime.cuda import Gpu, Memory
from m2kit.runtime.device import find_device
from m2kit.runtime.target import check_machine, rebuild_command
from m2kit.runtime.tensorrt_library import error_log, load_tensorrt
from m2kit.runtime.tensorrt_plan import OpenedPlan
from m2kit.runtime.tensorrt_steps import StepGraphs


class TensorRTBackend:
    """The Backend protocol over TensorRT plans. One thread; one generation at a time.

    Attributes:
        device: The GPU's name and compute capability.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Look for the GPU, then for TensorRT, and compare both with what the engine is for.

        Args:
            folder: An engine folder.
            manifest: Its manifest.

        Raises:
            BackendError: No GPU, driver or TensorRT that can run it.
            FolderError: Built for another machine.
        """
        build = manifest.build
        self.name = str(build["backend"])
        self._folder, self._manifest = folder, manifest
        device = find_device(f"{folder}, an engine for {self.name},")
        self.device = str(device)
        self._trt = load_tensorrt(self.name)
        check_machine(folder, manifest, str(self._trt.__version__), device)
        self._gpu = Gpu()
        self._log = error_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        if build.get("version_compatible"):  # such a plan brings its own runtime, which is code
            self._runtime.engine_host_code_allowed = True
        self._rows = int(build["rows"])
        self.largest_rows: int | None = self._rows
        self.largest_batch: int | None = self._rows // 2
        self.image_sizes: tuple[tuple[int, int], ...] | None = tuple(
            (height, width) for height, width in build["image_sizes"]
        )
        self._tokenizer: dict[tuple[str, int, int], _TokenizerGraph] = {}
        self._steps: StepGraphs | None = None
        self._closed = False

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, lfq or decoder on named inputs; returns its named outputs.

        Raises:
            InputError: More images than the engine takes, or an image size it was not built for.
        """
        self._check_open()
        (array,) = feeds.values()
        self._check_batch(len(array), self.largest_batch, "images")
        factor = 1 if graph == contract.ENCODER else self._manifest.spec.tokenizer.downsampling
        height, width = (int(side) * factor for side in array.shape[2:])
        key = (graph, height, width)
        if key not in self._tokenizer:
            self._tokenizer[key] = self._open_tokenizer(*key)
        return self._tokenizer[key].run(feeds)

    def open_steps(self, rows: int) -> Steps:
        """The step graphs for `rows` rows (R); steps opened before are not used afterwards.

        Raises:
            InputError: More rows than the engine was built for.
        """
        self._check_open()
        self._check_batch(rows, self.largest_rows, "rows (two an image with guidance)")
        if self._steps is None:
            plans = {
                graph: self._open_plan(
                    graph,
                    self._manifest.graph_file(contract.PORTABLE, graph),
                    {"R": self._rows},
                )
                for graph in contract.STEP_GRAPHS
            }
            self._steps = StepGraphs(self._gpu, plans)
        return self._steps.lease(rows)

    def active(self) -> dict[str, Any]:
        """What runs and how: versions, GPU, CUDA graphs, and the layers of the networks the plans
        were built from, by type and precision, which strong typing binds the plans to."""
        recorded = {} if self._steps is None else dict(self._steps.recorded)
        return {
            "backend": f"{self.name} {self._trt.__version__}",
            "gpu": self.device,
            "cuda_graphs": recorded or "no step graph was opened",
            "parsed_layers": {
                graph: details["layers"]
                for graph, details in self._manifest.build["graphs"].items()
            },
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

    def _open_plan(self, graph: str, file: str, sizes: Mapping[str, int]) -> OpenedPlan:
        """Deserialize one plan and check that it is what the contract says."""
        io = contract.graph_io(self._manifest.spec, graph)
        compute = str(self._manifest.lowerings[contract.PORTABLE][graph]["compute"])
        tensors = {
            tensor.name: (_shape(tensor, sizes), _dtype(tensor, compute))
            for tensor in (*io.inputs, *io.outputs)
        }
        return OpenedPlan(self._trt, self._runtime, self._log, self._folder / file, io, tensors)

    def _open_tokenizer(self, graph: str, height: int, width: int) -> _TokenizerGraph:
        sizes = self.image_sizes or ()
        if (height, width) not in sizes:
            known = " or ".join(f"{h} x {w}" for h, w in sizes)
            raise InputError(
                f"this engine takes images of {known} pixels, found {height} x {width}; build it "
                f"with `{rebuild_command(self._folder, self._manifest)} "
                f"--image-size {height},{width}`"
            )
        factor = self._manifest.spec.tokenizer.downsampling
        dimensions = {
            "B": self._rows // 2,
            "H": height,
            "W": width,
            "h": height // factor,
            "w": width // factor,
        }
        file = contract.plan_file(graph, (height, width))
        return _TokenizerGraph(self._gpu, self._open_plan(graph, file, dimensions))

    def _check_batch(self, found: int, largest: int | None, what: str) -> None:
        if largest is not None and found > largest:
            raise InputError(
                f"this engine takes {largest} {what} at once, asked for {found}: use --batch "
                f"{self.largest_batch}, or build it with a larger `build-engine --batch`"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the engine was closed; open it again with m2kit.open_engine")


class _TokenizerGraph:
    """Encoder, lfq or decoder for one image size."""

    def __init__(self, gpu: Gpu, plan: OpenedPlan) -> None:
        """Allocate and bind."""
        self._gpu, self._plan = gpu, plan
        self._inputs, self._outputs = (
            [tensor.name for tensor in part] for part in (plan.io.inputs, plan.io.outputs)
        )
        shared = {name: plan.tensors[name] for name in (*self._inputs, *self._outputs)}
        self._memory = Memory(gpu, shared, {"scratch": plan.scratch_bytes})
        try:
            plan.bind(self._memory.addresses, self._memory.addresses["scratch"])
        except BackendError:
            self.close()
            raise

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a batch, filled up with repeats of its last image."""
        arrays, images = self._memory.arrays, len(next(iter(feeds.values())))
        for name, feed in feeds.items():
            arrays[name][:images] = feed
            arrays[name][images:] = feed[-1]
        self._memory.upload(self._inputs[0], self._inputs[-1])
        self._plan.enqueue(self._gpu.stream)
        self._memory.download(self._outputs[0], self._outputs[-1])
        self._gpu.synchronize()
        return {name: arrays[name][:images].copy() for name in self._outputs}

    def close(self) -> None:
        """Release plan and memory."""
        self._plan.close()
        self._memory.free()


def _shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)


def _dtype(tensor: TensorSpec, compute: str) -> str:
    return compute if tensor.dtype == "compute" else tensor.dtype
