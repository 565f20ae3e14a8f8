"""Whether ONNX Runtime engines can be built and run on a machine."""

from __future__ import annotations

from m2kit.errors import install
from m2kit.runtime.machine import NO_DRIVER, Machine


def status(machine: Machine) -> dict[str, str]:
    """Provider -> "ready", or what is missing and how to get it."""
    here = machine.has("onnxruntime") or machine.has("onnxruntime-gpu")
    if machine.has("onnxruntime-gpu"):
        cuda = machine.gpu_status
    elif machine.driver is None:
        cuda = NO_DRIVER
    elif machine.has("onnxruntime"):
        cuda = f"pip uninstall onnxruntime, then {install('gpu')}"
    else:
        cuda = install("gpu")
    if machine.l4t is not None:
        cuda = "PyPI's wheel has no kernels for a Jetson; use the cpu provider"
    return {"onnxruntime, cpu": "ready" if here else install("cpu"), "onnxruntime, cuda": cuda}
