"""Bundle -> TensorRT-RTX plans in half precision, built without a GPU and not run.

The bundle's exact graphs are turned into typed half graphs (precision.py) in a temporary folder,
each is built on its own, and the plans, with the bundle's reference, are the engine folder.
"""

from __future__ import annotations

import platform
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import m2kit
from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.engines.precision import write_half
from m2kit.engines.tensorrt_plan import build_plan, load_tensorrt_rtx, targets
from m2kit.errors import BackendError, InputError
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

BACKEND = "tensorrt-rtx"
NOT_RUN = "built, not run"
_BASE_BYTES = 500_000_000  # Python, TensorRT and its kernels
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def build_tensorrt_rtx_engine(
    bundle: Path,
    destination: Path,
    *,
    batch: int,
    capabilities: Sequence[str],
    image_size: tuple[int, int] | None = None,
    begin: Begin = silent,
) -> Manifest:
    """Build the plans of a bundle; no GPU is needed, and none is used to try them.

    Args:
        bundle: A float32 bundle folder.
        destination: The engine folder.
        batch: Images at once; a guided batch has twice as many rows.
        capabilities: Compute capabilities of the target GPUs, such as "8.6".
        image_size: (height, width) in pixels; None takes the model's own.
        begin: Called with the name of each stage as it begins.

    Raises:
        FolderError: The bundle is damaged or the destination cannot be written.
        BackendError: tensorrt-rtx is not installed or does not take a graph, or memory is short.
        InputError: An unknown compute capability, or an image size the model does not take.
        ParityError: The model's values do not fit into half precision.
    """
    started = time.monotonic()
    trt = load_tensorrt_rtx()
    targets(trt, capabilities)
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    check_files(bundle, source, trust_seen_weights=False)
    sizes = static_sizes(source.spec, batch, image_size)
    _check_memory(source.spec)
    built: dict[str, Any] = {}
    with new_folder(destination, manifest_name(ENGINE)) as folder:
        half_folder = folder / "half"  # inside, so that a killed build leaves one folder
        half_folder.mkdir()
        begin("turning the graphs into half precision")
        half, moved = write_half(bundle, source, half_folder)
        for graph in contract.graph_names(source.spec):
            begin(f"building {graph}")
            io = contract.graph_io(source.spec, graph)
            onnx, plan = half_folder / f"{graph}.onnx", folder / f"{graph}.plan"
            layers = build_plan(onnx, plan, io, sizes, capabilities)
            built[graph] = {"layers": layers, "moved_to_float": moved[graph]}
        shutil.rmtree(half_folder)
        shutil.copyfile(bundle / REFERENCE_FILE, folder / REFERENCE_FILE)
        lowering = {
            graph: entry | {"file": f"{graph}.plan"}
            for graph, entry in half.lowerings[contract.PORTABLE].items()
        }
        manifest = replace(
            source,
            kind=ENGINE,
            lowerings={contract.PORTABLE: lowering},
            files=files_table(folder),
            parity={"passed": None, "checks": {}, "state": NOT_RUN},
            versions=source.versions
            | {"m2kit": m2kit.__version__, "tensorrt_rtx": str(trt.__version__)},
            build={
                "backend": BACKEND,
                "backend_version": str(trt.__version__),
                "precision": "float16",
                "rows": sizes["R"],
                "image_sizes": [[sizes["H"], sizes["W"]]],
                "compute_capabilities": list(capabilities),
                "graphs": built,
                "os": platform.system(),
                "architecture": platform.machine(),
                "seconds": round(time.monotonic() - started, 2),
                "peak_memory_bytes": 1024
                * max(resource.getrusage(who).ru_maxrss for who in _PROCESSES),
            },
        )
        write_manifest(folder, manifest)
    return manifest


def needed_bytes(spec: ModelSpec) -> int:
    """Memory that building the largest graph takes, on the safe side.

    Measured: 3.5 times the half weights for AR-B's inter step (2.2 GB), 0.33 GB for tiny graphs.
    """
    return _BASE_BYTES + 4 * 2 * max(parameter_counts(spec).values())


def _check_memory(spec: ModelSpec) -> None:
    needed, available = needed_bytes(spec), available_bytes()
    if available is not None and available < needed:
        raise BackendError(
            f"building needs about {needed / 1e9:.1f} GB of memory for the largest graph, "
            f"{available / 1e9:.1f} GB are available; close other programs, add swap, or build on "
            "a larger machine"
        )


def static_sizes(spec: ModelSpec, batch: int, image_size: tuple[int, int] | None) -> dict[str, int]:
    """The value of every symbolic dimension of the contract.

    Raises:
        InputError: No image size is known, or the model does not take it.
    """
    factor, size = spec.tokenizer.downsampling, image_size or spec.image_size
    if size is None:
        raise InputError("this bundle holds a tokenizer only: give --image-size, such as 256,256")
    height, width = size
    if height < 1 or width < 1 or height % factor or width % factor:
        raise InputError(
            f"--image-size {height},{width}: both must be multiples of {factor}, the model's "
            "downsampling factor"
        )
    return {
        "R": 2 * batch,
        "B": batch,
        "H": height,
        "W": width,
        "h": height // factor,
        "w": width // factor,
    }
