"""Bundle -> engine for ONNX Runtime, where it and onnx-ir are installed; torch is not needed."""

from __future__ import annotations

from collections.abc import Callable

from m2kit.build import BuildOptions
from m2kit.engines.building import Job
from m2kit.errors import require
from m2kit.manifest import Manifest
from m2kit.runtime.ort.library import load_onnxruntime


def onnxruntime(options: BuildOptions) -> Callable[[Job], Manifest]:
    """What builds engines for ONNX Runtime.

    Raises:
        BackendError: A package is not installed.
    """
    load_onnxruntime()
    require("onnx_ir", extra="cpu,build", what="building for onnxruntime")
    from m2kit.engines.ort.writing import write_engine

    return write_engine
