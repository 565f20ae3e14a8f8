"""Whether ONNX Runtime engines can be built and run on a machine."""

from __future__ import annotations

from m2kit.errors import install
from m2kit.runtime.machine import Machine


def status(machine: Machine) -> dict[str, str]:
    """Provider -> "ready", or what is missing and how to get it."""
    here = machine.has("onnxruntime") or machine.has("onnxruntime-gpu")
    cuda = machine.gpu_status if machine.has("onnxruntime-gpu") else install("gpu")
    if machine.l4t is not None:
        cuda = "PyPI's wheel has no kernels for a Jetson; use the cpu provider"
    return {"onnxruntime, cpu": "ready" if here else install("cpu"), "onnxruntime, cuda": cuda}
