"""Whether TensorRT and TensorRT-RTX engines can be built and run on a machine."""

from __future__ import annotations

import importlib.util

from m2kit.errors import install
from m2kit.runtime.jetson import cuda_extra
from m2kit.runtime.machine import NO_DRIVER, Machine
from m2kit.runtime.trt.library import PRODUCTS, TENSORRT, version_of


def tensorrt_status(machine: Machine) -> dict[str, str]:
    """ "ready", or what is missing and how to get it."""
    version = tensorrt_version(machine)
    if version is None and machine.l4t is not None:
        status = "JetPack's tensorrt is not seen: use a venv with --system-site-packages"
    elif version is None:
        status = NO_DRIVER if machine.driver is None else install("tensorrt")
    elif too_old(version):
        status = f"TensorRT {version} is too old"
    elif not machine.has("cuda-bindings"):
        status = f"cuda-bindings is missing: {install(cuda_extra(machine.l4t))}"
    elif machine.gpus and not machine.has("polygraphy"):
        status = "ready to run; to build, pip install polygraphy"
    else:
        status = machine.gpu_status
    return {"tensorrt engines": status}


def tensorrt_version(machine: Machine) -> str | None:
    """Of the package tensorrt, under whichever name it was installed."""
    names = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    return next((machine.distributions[n] for n in names if machine.has(n)), None)


def too_old(version: str) -> bool:
    """Whether m2kit cannot use a TensorRT of that version."""
    return version_of(version) < PRODUCTS[TENSORRT].oldest


def rtx_status(machine: Machine) -> dict[str, str]:
    """ "ready", or what is missing and how to get it."""
    if machine.l4t is not None:
        status = "TensorRT-RTX does not support a Jetson"
    elif not machine.has("tensorrt-rtx", "onnx-ir", "polygraphy"):
        status = install("rtx")
    elif not machine.has("cuda-bindings"):
        status = f"ready to build; to run, cuda-bindings is missing: {install('rtx')}"
    else:
        status = "ready" if machine.gpus else f"ready to build; to run: {machine.gpu_status}"
    return {"tensorrt-rtx engines": status}


def why_not_default(machine: Machine) -> str:
    """Why engines are not built for TensorRT unless it is asked for; "" where they are."""
    if not machine.gpus:
        return machine.cuda
    if importlib.util.find_spec(PRODUCTS[TENSORRT].module) is None:
        return f"{machine.gpus[0]} is here, the package tensorrt is not"
    return ""
