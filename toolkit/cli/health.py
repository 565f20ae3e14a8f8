"""What of this machine can run, and what should be mended: plain rules on what was found."""

from __future__ import annotations

import platform

from m2kit.runtime.backends import BACKENDS
from m2kit.runtime.jetson import cuda_extra, jetpack
from m2kit.runtime.machine import Machine, install
from m2kit.runtime.trt.status import tensorrt_version, too_old


def readiness(machine: Machine) -> dict[str, str]:
    """Backend or task -> "ready", or what is missing and how to get it."""
    rows: dict[str, str] = {}
    for kind in BACKENDS.values():
        rows |= kind.status(machine)
    ort = machine.has("onnxruntime") or machine.has("onnxruntime-gpu")
    export = ort and machine.has("torch", "onnx-ir", "safetensors")
    training = machine.has("torch", "lightning")
    return rows | {
        "export": "ready" if export else install("export,cpu"),
        "training": "ready" if training else install("train"),
    }


def problems(machine: Machine) -> list[str]:
    """What should be mended, each with its cure."""
    found, has = [], machine.distributions
    if "onnxruntime" in has and "onnxruntime-gpu" in has:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install the one you need"
        )
    tensorrt = tensorrt_version(machine)
    if tensorrt and too_old(tensorrt):
        found.append(f"TensorRT {tensorrt} is too old: strongly typed engines need 10.3 or newer")
    known = jetpack(machine.l4t) if machine.l4t else None
    bindings = has.get("cuda-bindings")
    if known and bindings and int(bindings.split(".")[0]) != known.cuda:
        found.append(
            f"cuda-bindings {bindings} does not match CUDA {known.cuda} of JetPack "
            f"{known.version}: pip install 'm2kit[{cuda_extra(machine.l4t)}]'"
        )
    if known and tensorrt and not tensorrt.startswith(f"{known.tensorrt}."):
        found.append(
            f"TensorRT {tensorrt} is not JetPack's {known.tensorrt}: pip uninstall tensorrt, and "
            "make the environment with --system-site-packages"
        )
    for major in ("12", "13"):
        if bindings and f"tensorrt-cu{major}" in has and not bindings.startswith(f"{major}."):
            found.append(
                f"tensorrt-cu{major} and cuda-bindings {bindings} are of two CUDA majors: "
                f"pip install 'cuda-bindings>={major},<{int(major) + 1}'"
            )
    if machine.driver and not machine.gpus:
        found.append(f"driver {machine.driver} is there, but CUDA finds no device: {machine.cuda}")
    return found


def system_text() -> str:
    """Operating system, architecture and Python in one line."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
