"""What a benchmark ran on and with, as --json prints it beside the figures."""

from __future__ import annotations

import platform
from pathlib import Path

import m2kit
from m2kit.host import model_name
from m2kit.records import JsonObject
from m2kit.runtime.engine import Engine
from m2kit.runtime.machine import installed

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch")


def circumstances(path: Path, engine: Engine) -> JsonObject:
    """Of an engine that was opened from a folder: its precision, what runs, machine, versions."""
    host = engine.backend.threads
    where = f"{host} threads" if host else engine.backend.device
    own = {"m2kit": m2kit.__version__, "python": platform.python_version()}
    return {
        "engine": str(path),
        "precision": engine.info.precision.value if engine.info else None,
        "active": engine.backend.active(),
        "machine": f"{model_name()}, {where}, {platform.system()}",
        "versions": own | installed(_PACKAGES),
    }
