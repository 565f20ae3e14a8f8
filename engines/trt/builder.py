"""Bundle -> TensorRT engine, for tensorrt and tensorrt-rtx.

The bundle's exact graphs are turned into typed half graphs (half_precision.py) in a temporary
folder, and each becomes a plan in a process of its own (process.py).
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from m2kit import contract
from m2kit.build import Build, BuildOptions, Plan, Target
from m2kit.config import ModelSpec
from m2kit.engines.building import Job
from m2kit.engines.trt.estimate import check_resources
from m2kit.engines.trt.process import build_plan, targets
from m2kit.errors import InputError, require
from m2kit.families.sizes import misfit
from m2kit.manifest import Manifest
from m2kit.precision import Precision
from m2kit.runtime.device import find_device
from m2kit.runtime.trt.caches import TIMING, cache_file
from m2kit.runtime.trt.library import PRODUCTS, TENSORRT, TENSORRT_RTX, load_tensorrt


def tensorrt(options: BuildOptions) -> Callable[[Job], Manifest]:
    """What builds engines for TensorRT, for the GPU that is here.

    Raises:
        BackendError: TensorRT or a GPU is missing.
    """
    device = find_device("building for TensorRT")
    version = str(load_tensorrt(TENSORRT).__version__)
    cache = None if options.no_timing_cache else cache_file(TIMING, TENSORRT, version, device)
    target = replace(
        Target.here(),
        gpu=device.name,
        compute_capabilities=(device.capability,),
        multiprocessors=device.multiprocessors,
        memory_bytes=device.memory_bytes,
    )
    return functools.partial(_build, TENSORRT, version, target, cache)


def tensorrt_rtx(options: BuildOptions) -> Callable[[Job], Manifest]:
    """What builds engines for TensorRT-RTX, for the GPUs of its compute capabilities.

    Raises:
        BackendError: TensorRT-RTX is missing.
        InputError: A compute capability that it does not know.
    """
    trt = load_tensorrt(TENSORRT_RTX)
    targets(trt, options.compute_capabilities)
    target = replace(Target.here(), compute_capabilities=options.compute_capabilities)
    return functools.partial(_build, TENSORRT_RTX, str(trt.__version__), target, None)


def _build(product: str, version: str, target: Target, cache: Path | None, job: Job) -> Manifest:
    """Build the plans of a bundle."""
    source, precision, batch = job.source, job.precision, job.options.batch or 1
    if precision is Precision.FLOAT32 and source.precision is Precision.FLOAT16:
        raise InputError(
            f"{job.bundle} is half precision already: float32 needs a float32 one",
            option="--precision fp32",
        )
    sizes = plan_sizes(source.spec, job.options.image_sizes)
    job.begin(check_resources(source.spec, product, precision))
    typed, onnx_folder = _typed_graphs(job)
    dimensions = {"R": 2 * batch, "B": batch}
    planned = list(_planned(typed, sizes))
    plans: dict[str, Plan] = {}
    for number, (graph, size) in enumerate(planned, start=1):
        plan = job.folder / contract.plan_file(graph, size)
        job.begin(f"building {plan.name}, {number} of {len(planned)}")
        fixed = dimensions | (contract.image_dimensions(source.spec, size) if size else {})
        inputs = contract.graph_io(source.spec, graph).inputs
        shapes = tuple(tensor.fixed_shape(fixed) for tensor in inputs)
        onnx = onnx_folder / typed.graph_file(contract.PORTABLE, graph)
        details = build_plan(onnx, plan, shapes, product, job.options, cache)
        plans.setdefault(graph, details)  # the same at every image size
    if onnx_folder != job.bundle:
        shutil.rmtree(onnx_folder)
    build = Build(
        backend=product,
        backend_version=version,
        bundle=job.bundle.resolve().name,
        options=job.options,
        target=target,
        rows=2 * batch,
        image_sizes=tuple(sizes),
        plans=plans,
    )
    first = dict(reversed(planned))  # graph -> the first size it is planned for
    entries = {
        graph: replace(entry, file=contract.plan_file(graph, first[graph]))
        for graph, entry in typed.lowerings[contract.PORTABLE].items()
    }
    typed = replace(typed, lowerings={contract.PORTABLE: entries})
    return job.engine(typed, build, {PRODUCTS[product].module: version})


def _planned(
    typed: Manifest, sizes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Every plan: its graph, and its image size where it is the tokenizer's."""
    for graph in contract.graph_names(typed.spec):
        own = sizes if graph in contract.tokenizer_graphs(typed.spec) else [None]
        yield from ((graph, size) for size in own)


def _typed_graphs(job: Job) -> tuple[Manifest, Path]:
    """The graphs to parse, and where they lie."""
    if job.precision is job.source.precision:
        return job.source, job.bundle
    require("onnx_ir", extra="build", what="deriving half precision from a float32 bundle")
    from m2kit.engines.half_precision import write_half

    job.begin("turning the graphs into half precision")
    onnx_folder = job.folder / "half"  # inside, so that a killed build leaves one folder
    onnx_folder.mkdir()
    return write_half(job.bundle, job.source, onnx_folder), onnx_folder


def plan_sizes(
    spec: ModelSpec, image_sizes: Sequence[tuple[int, ...]] = ()
) -> list[tuple[int, ...]]:
    """The sizes, such as (height, width), that plans are built for: the model's own first.

    Raises:
        InputError: No image size is known, or the model does not take one.
    """
    sizes = list(dict.fromkeys([*([spec.image_size] if spec.image_size else []), *image_sizes]))
    if not sizes:
        example = ",".join([*spec.tokenizer.axes[:-2], "256", "256"])
        raise InputError(
            "this bundle holds a tokenizer only: give an image size",
            option=f"--image-size {example}",
        )
    for size in sizes:
        if wrong := misfit(spec.tokenizer, size):
            raise InputError(
                f"image size {','.join(map(str, size))}: {wrong}", option="--image-size"
            )
    return sizes
