"""Bundle -> TensorRT engine, for tensorrt and tensorrt-rtx.

The bundle's exact graphs are turned into typed half graphs (precision.py) in a temporary folder,
each becomes a plan in a process of its own (tensorrt_process.py), and the plans are compared with
PyTorch's reference on the GPU they are for. Where that GPU is not here, engine.json says so, and
the first machine that opens the engine compares.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import m2kit
from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.engines.tensorrt_process import PlanOptions, build_plan, targets
from m2kit.errors import BackendError, InputError, require
from m2kit.folders import new_folder
from m2kit.manifest import (
    BUNDLE,
    ENGINE,
    REFERENCE_FILE,
    Manifest,
    check_files,
    files_table,
    manifest_name,
    read_manifest,
    write_manifest,
)
from m2kit.memory import available_bytes
from m2kit.parameters import parameter_counts
from m2kit.progress import Begin, silent
from m2kit.runtime.device import Device, find_device, probe
from m2kit.runtime.engine import Engine
from m2kit.runtime.tensorrt_backend import TensorRTBackend
from m2kit.runtime.tensorrt_library import PRODUCTS, TENSORRT, load_tensorrt
from m2kit.runtime.verification import compare, read_reference, require_parity

HALF, FLOAT32 = "float16", "float32"
NOT_RUN = "built, not run"
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@dataclass(frozen=True, slots=True)
class _Cost:
    """What building takes: bytes = base + factor * weights of the largest graph."""

    base_bytes: int
    factor: float
    seconds_per_gb: float | None


_COSTS = {
    # tensorrt-rtx measured on two cores: AR-B's inter step 2.2 GB, 3.5 times its half weights;
    # AR-B's five plans 28 s, for 0.91 GB of them.
    "tensorrt-rtx": _Cost(500_000_000, 4.0, 31.0),
    # tensorrt not measured: 5 to 8 times the weights and 1.5 GB are what others report of 10.x.
    "tensorrt": _Cost(1_500_000_000, 6.0, None),
}


def build_tensorrt_engine(
    bundle: Path,
    destination: Path,
    options: PlanOptions,
    *,
    batch: int = 1,
    image_sizes: Sequence[tuple[int, int]] = (),
    precision: str = HALF,
    keep_timings: bool = True,
    flags: Sequence[str] = (),
    begin: Begin = silent,
) -> Manifest:
    """Build the plans of a bundle, and try them where their GPU is present.

    Args:
        bundle: A bundle folder, float32 or (for half plans) float16.
        destination: The engine folder.
        options: Product, targets and limits.
        batch: Images at once; a guided batch has twice as many rows.
        image_sizes: (height, width) in pixels beside the model's own.
        precision: float16, or float32 of a float32 bundle.
        keep_timings: tensorrt: read and extend the measured tactics of this GPU and version.
        flags: Options of the command line to record, for the command that builds it again.
        begin: Called with the name of each stage as it begins.

    Raises:
        FolderError: The bundle is damaged or the destination cannot be written.
        BackendError: TensorRT or its GPU is missing or does not take a graph, or memory is short.
        InputError: An unknown compute capability, or an image size the model does not take.
        ParityError: The values do not fit into half precision, or the plans do not agree with
            PyTorch.
    """
    started = time.monotonic()
    device = find_device("building for TensorRT") if options.product == TENSORRT else None
    trt = load_tensorrt(options.product)
    if device is None:
        targets(trt, options.capabilities)
    else:
        cache = _timing_cache(options.product, trt.__version__, device) if keep_timings else None
        options = replace(options, capabilities=(device.capability,), timing_cache=cache)
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    check_files(bundle, source, trust_seen_weights=False)
    if precision == FLOAT32 and source.precision == HALF:
        raise InputError(f"{bundle} is half precision already: --precision fp32 needs a fp32 one")
    sizes = plan_sizes(source.spec, image_sizes)
    begin(_check_resources(source.spec, options.product, precision))
    with new_folder(destination, manifest_name(ENGINE)) as folder:
        typed, moved, onnx_folder = _typed_graphs(bundle, source, folder, precision, begin)
        built = _build_plans(typed, onnx_folder, folder, batch, sizes, options, begin)
        if onnx_folder != bundle:
            shutil.rmtree(onnx_folder)
        shutil.copyfile(bundle / REFERENCE_FILE, folder / REFERENCE_FILE)
        manifest = replace(
            source,
            kind=ENGINE,
            lowerings={contract.PORTABLE: _entries(typed, sizes[0])},
            files=files_table(folder),
            parity={"passed": None, "checks": {}, "state": NOT_RUN},
            versions=source.versions
            | {"m2kit": m2kit.__version__, PRODUCTS[options.product].module: trt.__version__},
            build=_target(options, device, str(trt.__version__))
            | {
                "bundle": bundle.resolve().name,
                "options": list(flags),
                "precision": precision,
                "rows": 2 * batch,
                "image_sizes": [list(size) for size in sizes],
                "graphs": {
                    graph: details | {"moved_to_float": moved.get(graph, {})}
                    for graph, details in built.items()
                },
            },
        )
        manifest = _tried(folder, manifest, device, begin)
        manifest.build["seconds"] = round(time.monotonic() - started, 2)
        manifest.build["peak_memory_bytes"] = 1024 * max(
            resource.getrusage(who).ru_maxrss for who in _PROCESSES
        )
        write_manifest(folder, manifest)
    return manifest


def _typed_graphs(
    bundle: Path, source: Manifest, folder: Path, precision: str, begin: Begin
) -> tuple[Manifest, Mapping[str, Any], Path]:
    """The graphs to parse: manifest, what was moved to float in each, and where they lie."""
    if precision == source.precision:
        return source, source.build.get("moved_to_float", {}), bundle
    require("onnx_ir", extra="build", what="deriving half precision from a float32 bundle")
    from m2kit.engines.precision import write_half

    begin("turning the graphs into half precision")
    onnx_folder = folder / "half"  # inside, so that a killed build leaves one folder
    onnx_folder.mkdir()
    return (*write_half(bundle, source, onnx_folder), onnx_folder)


def _build_plans(
    typed: Manifest,
    onnx_folder: Path,
    folder: Path,
    batch: int,
    sizes: Sequence[tuple[int, int]],
    options: PlanOptions,
    begin: Begin,
) -> dict[str, dict[str, Any]]:
    """Write every plan; returns graph -> its layers and flags, as `build_plan` does."""
    spec, factor = typed.spec, typed.spec.tokenizer.downsampling
    jobs = [
        (graph, size)
        for graph in contract.graph_names(spec)
        for size in (sizes if graph in contract.TOKENIZER_GRAPHS else [None])
    ]
    built: dict[str, dict[str, Any]] = {}
    for number, (graph, size) in enumerate(jobs, start=1):
        dimensions = {"R": 2 * batch, "B": batch}
        if size is not None:
            height, width = size
            dimensions |= {"H": height, "W": width, "h": height // factor, "w": width // factor}
        plan = folder / contract.plan_file(graph, size)
        begin(f"building {plan.name}, {number} of {len(jobs)}")
        onnx = onnx_folder / typed.graph_file(contract.PORTABLE, graph)
        io = contract.graph_io(spec, graph)
        details = build_plan(onnx, plan, io, dimensions, options)
        built.setdefault(graph, details)  # the same at every image size
    return built


def _target(options: PlanOptions, device: Device | None, version: str) -> dict[str, Any]:
    """What engine.json says of the machines that the plans are for."""
    return {
        "backend": options.product,
        "backend_version": version,
        "gpu": device.name if device else None,
        "compute_capabilities": list(options.capabilities),
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "os": platform.system(),
        "architecture": platform.machine(),
    }


def _entries(typed: Manifest, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    return {
        graph: entry
        | {"file": contract.plan_file(graph, size if graph in contract.TOKENIZER_GRAPHS else None)}
        for graph, entry in typed.lowerings[contract.PORTABLE].items()
    }


def _tried(folder: Path, manifest: Manifest, device: Device | None, begin: Begin) -> Manifest:
    """The manifest with the outcome of running the engine, where it can be run here.

    Raises:
        ParityError: It does not agree with PyTorch.
    """
    if device is None:
        here, _ = probe()
        if not here or here[0].capability not in manifest.build["compute_capabilities"]:
            return manifest
    advance = begin("comparing the engine with PyTorch's reference", manifest.spec.positions)
    backend = TensorRTBackend(folder, manifest)
    with Engine(manifest.spec, backend) as engine:
        reference = read_reference(folder / REFERENCE_FILE)
        report = compare(engine, reference, advance, precision=manifest.precision)
    require_parity(report, "the engine")
    return replace(manifest, parity=report | {"devices": [backend.device]})


def _timing_cache(product: str, version: str, device: Device) -> Path | None:
    """Where the measured tactics of a GPU and a TensorRT version are kept; None if nowhere."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(device)).strip("-")
    try:
        folder = Path.home() / ".cache" / "m2kit" / "timing"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only home, or none: building only takes longer
        return None
    return folder / f"{product}-{version}-{name}.cache" if os.access(folder, os.W_OK) else None


def needed_bytes(spec: ModelSpec, product: str, precision: str = HALF) -> int:
    """Memory that building the largest graph takes, on the safe side."""
    cost = _COSTS[product]
    return cost.base_bytes + int(cost.factor * _weight_bytes(spec, precision, max))


def _weight_bytes(spec: ModelSpec, precision: str, of: Any) -> int:
    size = 2 if precision == HALF else 4
    return size * int(of(parameter_counts(spec).values()))


def _check_resources(spec: ModelSpec, product: str, precision: str) -> str:
    """What building will take, in words.

    Raises:
        BackendError: More memory than there is.
    """
    needed, available = needed_bytes(spec, product, precision), available_bytes()
    if available is not None and available < needed:
        raise BackendError(
            f"building needs about {needed / 1e9:.1f} GB of memory for the largest graph, "
            f"{available / 1e9:.1f} GB are available; close other programs, add swap, or build on "
            "a larger machine"
        )
    rate = _COSTS[product].seconds_per_gb
    seconds = 10 + (rate or 0) * _weight_bytes(spec, precision, sum) / 1e9
    duration = f"{seconds:.0f} s" if rate else "minutes, most of them only the first time"
    free = "" if available is None else f" of {available / 1e9:.1f} GB available"
    return f"building takes about {needed / 1e9:.1f} GB of memory{free}, and {duration}"


def plan_sizes(
    spec: ModelSpec, image_sizes: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """The (height, width) that plans are built for: the model's own first.

    Raises:
        InputError: No image size is known, or the model does not take one.
    """
    factor = spec.tokenizer.downsampling
    sizes = list(dict.fromkeys([*([spec.image_size] if spec.image_size else []), *image_sizes]))
    if not sizes:
        raise InputError("this bundle holds a tokenizer only: give --image-size, such as 256,256")
    for height, width in sizes:
        if height < 1 or width < 1 or height % factor or width % factor:
            raise InputError(
                f"--image-size {height},{width}: both must be multiples of {factor}, the model's "
                "downsampling factor"
            )
    return sizes
