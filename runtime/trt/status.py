"""Whether TensorRT and TensorRT-RTX engines can be built and run on a machine."""

from __future__ import annotations

import importlib.util

from m2kit.runtime.jetson import cuda_extra
from m2kit.runtime.machine import Machine, install
from m2kit.runtime.trt.library import PRODUCTS, TENSORRT, version_of


def tensorrt_status(machine: Machine) -> dict[str, str]:
    """ "ready", or what is missing and how to get it."""
    return {"tensorrt engines": _tensorrt(machine)}


def _tensorrt(machine: Machine) -> str:
    version = tensorrt_version(machine)
    if version is None:
        if machine.l4t is not None:
            return "JetPack's tensorrt is not seen: use a venv with --system-site-packages"
        return install("tensorrt")
    if too_old(version):
        return f"TensorRT {version} is too old"
    if not machine.has("cuda-bindings"):
        return f"cuda-bindings is missing: {install(cuda_extra(machine.l4t))}"
    if not machine.gpus:
        return machine.gpu_status
    build = machine.has("polygraphy")
    return "ready" if build else "ready to run; to build, pip install polygraphy"


def tensorrt_version(machine: Machine) -> str | None:
    """Of the package tensorrt, under whichever name it was installed."""
    names = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    return next((machine.distributions[n] for n in names if machine.has(n)), None)


def too_old(version: str) -> bool:
    """Whether m2kit cannot use a TensorRT of that version."""
    return version_of(version) < PRODUCTS[TENSORRT].oldest


def rtx_status(machine: Machine) -> dict[str, str]:
    """ "ready", or what is missing and how to get it."""
    return {"tensorrt-rtx engines": _rtx(machine)}


def _rtx(machine: Machine) -> str:
    if machine.l4t is not None:
        return "TensorRT-RTX does not support a Jetson"
    if not machine.has("tensorrt-rtx", "onnx-ir", "polygraphy"):
        return install("rtx")
    if not machine.has("cuda-bindings"):
        return f"ready to build; to run, {install('rtx')} brings cuda-bindings"
    return "ready" if machine.gpus else f"ready to build; to run: {machine.gpu_status}"


def why_not_default(machine: Machine) -> str:
    """Why engines are not built for TensorRT unless it is asked for; "" where they are."""
    if not machine.gpus:
        return machine.cuda
    if importlib.util.find_spec(PRODUCTS[TENSORRT].module) is None:
        return f"{machine.gpus[0]} is here, the package tensorrt is not"
    return ""
