"""Bundle -> engine for ONNX Runtime, float32: the portable graphs, checked on this machine."""

from __future__ import annotations

import platform
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import m2kit
from m2kit.errors import FolderError, InputError, require
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
from m2kit.progress import Begin, silent
from m2kit.runtime.engine import Engine
from m2kit.runtime.onnxruntime_backend import OnnxRuntimeBackend
from m2kit.runtime.verification import compare, read_reference, require_parity


def build_onnxruntime_engine(bundle: Path, destination: Path, begin: Begin = silent) -> Manifest:
    """Build the engine of a bundle; it appears only if it agrees with PyTorch's reference.

    Args:
        bundle: A bundle folder.
        destination: The engine folder.
        begin: Called with the name of each stage as it begins.

    Raises:
        FolderError: The bundle is damaged or the destination cannot be written.
        BackendError: onnxruntime is not installed or cannot load a graph.
        InputError: The bundle is in half precision.
        ParityError: The engine does not agree with the reference.
    """
    started = time.monotonic()
    ort = require("onnxruntime", extra="cpu", what="the onnxruntime backend")
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    if source.precision != "float32":
        raise InputError(
            f"{bundle} is in half precision, which is for TensorRT: onnxruntime engines are built "
            "from a bundle of `m2kit export --precision fp32`"
        )
    check_files(bundle, source, trust_seen_weights=False)
    with new_folder(destination, manifest_name(ENGINE)) as folder:
        begin("copying graphs and weights")
        for name in source.files:
            shutil.copyfile(bundle / name, folder / name)
        files = files_table(folder)
        if files != source.files:
            raise FolderError(f"{bundle} changed while it was being copied; run build-engine again")
        manifest = replace(source, kind=ENGINE, files=files)
        advance = begin("comparing the engine with PyTorch's reference", source.spec.positions)
        with Engine(source.spec, OnnxRuntimeBackend(folder, manifest)) as engine:
            report = compare(engine, read_reference(folder / REFERENCE_FILE), advance)
        require_parity(report, "the engine")
        manifest = replace(
            manifest,
            parity=report,
            versions=source.versions | {"m2kit": m2kit.__version__},
            build={
                "backend": OnnxRuntimeBackend.name,
                "backend_version": ort.__version__,
                "bundle": bundle.resolve().name,
                "precision": "float32",
                "rows": None,  # any number of rows, any image size
                "image_sizes": None,
                "os": platform.system(),
                "architecture": platform.machine(),
                "seconds": round(time.monotonic() - started, 2),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        )
        write_manifest(folder, manifest)
    return manifest
