"""Bundle -> TensorRT engine, for tensorrt and tensorrt-rtx.

The bundle's exact graphs are turned into typed half graphs (half_precision.py) in a temporary
folder, each becomes a plan in a process of its own (process.py), and the plans are compared with
PyTorch's reference on the GPU they are for. Where that GPU is not here, engine.json says so, and
the first machine that opens the engine compares.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from m2kit import contract
from m2kit.build import Build, BuildOptions, Plan, Target
from m2kit.config import ModelSpec
from m2kit.engines.building import Job
from m2kit.engines.trt.estimate import check_resources
from m2kit.engines.trt.process import PlanOptions, build_plan, targets
from m2kit.errors import InputError, require
from m2kit.manifest import GraphEntry, Manifest
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.runtime.device import Device, find_device, probe
from m2kit.runtime.parity import prove
from m2kit.runtime.trt.library import PRODUCTS, TENSORRT, TENSORRT_RTX, load_tensorrt


def tensorrt(options: BuildOptions) -> Callable[[Job], Manifest]:
    """What builds engines for TensorRT, for the GPU that is here.

    Raises:
        BackendError: TensorRT or a GPU is missing.
    """
    device = find_device("building for TensorRT")
    version = str(load_tensorrt(TENSORRT).__version__)
    cache = None if options.no_timing_cache else timing_cache(TENSORRT, version, device)
    plans = PlanOptions.of(options, TENSORRT, (device.capability,), cache)
    return functools.partial(_build, plans, version, device)


def tensorrt_rtx(options: BuildOptions) -> Callable[[Job], Manifest]:
    """What builds engines for TensorRT-RTX, for the GPUs of its compute capabilities.

    Raises:
        BackendError: TensorRT-RTX is missing.
        InputError: A compute capability that it does not know.
    """
    trt = load_tensorrt(TENSORRT_RTX)
    targets(trt, options.compute_capabilities)
    plans = PlanOptions.of(options, TENSORRT_RTX, options.compute_capabilities, None)
    return functools.partial(_build, plans, str(trt.__version__), None)


def _build(plans: PlanOptions, version: str, device: Device | None, job: Job) -> Manifest:
    """Build the plans of a bundle, and try them where their GPU is present."""
    options, source, product = job.options, job.source, PRODUCTS[plans.product]
    precision = options.precision
    assert isinstance(precision, Precision)
    if precision is Precision.FLOAT32 and source.precision is Precision.FLOAT16:
        raise InputError(
            f"{job.bundle} is half precision already: --precision fp32 needs a fp32 one"
        )
    sizes = plan_sizes(source.spec, options.image_sizes)
    job.begin(check_resources(source.spec, plans.product, precision))
    typed, onnx_folder = _typed_graphs(job, precision)
    batch = options.batch or 1
    built = _build_plans(job, typed, onnx_folder, sizes, plans)
    if onnx_folder != job.bundle:
        shutil.rmtree(onnx_folder)
    build = Build(
        backend=plans.product,
        backend_version=version,
        bundle=job.bundle.resolve().name,
        options=options,
        target=Target.here(device.name if device else None, plans.capabilities),
        rows=2 * batch,
        image_sizes=tuple(sizes),
        plans=built,
    )
    entries = {contract.PORTABLE: _entries(typed, sizes[0])}
    typed = replace(typed, lowerings=entries, parity=ParityReport())
    manifest = job.engine(typed, build, {product.module: version})
    return _tried(job, manifest, device)


def _typed_graphs(job: Job, precision: Precision) -> tuple[Manifest, Path]:
    """The graphs to parse, and where they lie."""
    if precision is job.source.precision:
        return job.source, job.bundle
    require("onnx_ir", extra="build", what="deriving half precision from a float32 bundle")
    from m2kit.engines.half_precision import write_half

    job.begin("turning the graphs into half precision")
    onnx_folder = job.folder / "half"  # inside, so that a killed build leaves one folder
    onnx_folder.mkdir()
    return write_half(job.bundle, job.source, onnx_folder), onnx_folder


def _build_plans(
    job: Job,
    typed: Manifest,
    onnx_folder: Path,
    sizes: Sequence[tuple[int, ...]],
    options: PlanOptions,
) -> dict[str, Plan]:
    """Write every plan; returns what the builder was given for each graph."""
    spec, batch = typed.spec, job.options.batch or 1
    jobs: list[tuple[str, tuple[int, ...] | None]] = [
        (graph, size)
        for graph in contract.graph_names(spec)
        for size in (sizes if graph in contract.tokenizer_graphs(spec) else [None])
    ]
    built: dict[str, Plan] = {}
    for number, (graph, size) in enumerate(jobs, start=1):
        dimensions = {"R": 2 * batch, "B": batch}
        if size is not None:
            dimensions |= contract.image_dimensions(spec, size)
        plan = job.folder / contract.plan_file(graph, size)
        job.begin(f"building {plan.name}, {number} of {len(jobs)}")
        onnx = onnx_folder / typed.graph_file(contract.PORTABLE, graph)
        details = build_plan(onnx, plan, contract.graph_io(spec, graph), dimensions, options)
        built.setdefault(graph, details)  # the same at every image size
    return built


def _entries(typed: Manifest, size: tuple[int, ...]) -> dict[str, GraphEntry]:
    own = contract.tokenizer_graphs(typed.spec)
    return {
        graph: replace(entry, file=contract.plan_file(graph, size if graph in own else None))
        for graph, entry in typed.lowerings[contract.PORTABLE].items()
    }


def _tried(job: Job, manifest: Manifest, device: Device | None) -> Manifest:
    """The manifest with the outcome of running the engine, where it can be run here."""
    if device is None:
        here, _ = probe()
        if not here or here[0].capability not in manifest.built.target.compute_capabilities:
            return manifest
    return replace(manifest, parity=prove(job.folder, manifest, job.begin))


def timing_cache(product: str, version: str, device: Device) -> Path | None:
    """Where the measured tactics of a GPU and a TensorRT version are kept; None if nowhere."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(device)).strip("-")
    try:
        folder = Path.home() / ".cache" / "m2kit" / "timing"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only home, or none: building only takes longer
        return None
    return folder / f"{product}-{version}-{name}.cache" if os.access(folder, os.W_OK) else None


def plan_sizes(
    spec: ModelSpec, image_sizes: Sequence[tuple[int, ...]] = ()
) -> list[tuple[int, ...]]:
    """The sizes, such as (height, width), that plans are built for: the model's own first.

    Raises:
        InputError: No image size is known, or the model does not take one.
    """
    strides = spec.tokenizer.strides
    sizes = list(dict.fromkeys([*([spec.image_size] if spec.image_size else []), *image_sizes]))
    if not sizes:
        raise InputError("this bundle holds a tokenizer only: give --image-size, such as 256,256")
    for size in sizes:
        fits = len(size) == len(strides)
        if not fits or any(n < 1 or n % s for n, s in zip(size, strides, strict=True)):
            raise InputError(
                f"--image-size {','.join(map(str, size))}: expected multiples of "
                f"{','.join(map(str, strides))}, the model's downsampling factors"
            )
    return sizes
