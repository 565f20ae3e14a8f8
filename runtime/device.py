"""Looking for a GPU through cuda-bindings; nothing is started on it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from m2kit.errors import BackendError, require
from m2kit.runtime.jetson import cuda_extra, read_l4t

_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver; also what a machine without a driver gives
_NO_DEVICE = 100


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU.

    Attributes:
        name: As NVIDIA names it.
        capability: Compute capability such as "8.7".
    """

    name: str
    capability: str

    def __str__(self) -> str:
        """As messages and engine.json show it."""
        return f"{self.name} ({self.capability})"


def probe() -> tuple[tuple[Device, ...], str]:
    """The GPUs that CUDA finds, and in words why there is none ("ok" otherwise)."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return (), "cuda-bindings is not installed, so CUDA was not asked"
    status, count = runtime.cudaGetDeviceCount()
    if int(status):
        return (), _why_no_device(runtime, status)
    devices = []
    for index in range(count):
        status, properties = runtime.cudaGetDeviceProperties(index)
        if int(status):
            return (), f"CUDA cannot describe GPU {index} ({status_text(runtime, status)})"
        capability = f"{properties.major}.{properties.minor}"
        devices.append(Device(_text(properties.name), capability))
    return tuple(devices), "ok"


def find_device(what: str) -> Device:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses another); `what` needs it, as the
    start of a sentence.

    Raises:
        BackendError: No cuda-bindings, no driver, a driver that is too old, or no GPU.
    """
    require("cuda.bindings.runtime", extra=cuda_extra(read_l4t()), what=what)
    devices, reason = probe()
    if not devices:
        raise BackendError(
            f"{what} needs an NVIDIA GPU: {reason}; where there is none, build an engine with "
            "`m2kit build-engine --backend onnxruntime`"
        )
    return devices[0]


def _why_no_device(runtime: Any, status: Any) -> str:
    _, driver = runtime.cudaDriverGetVersion()
    _, wanted = runtime.cudaRuntimeGetVersion()
    if int(status) == _INSUFFICIENT_DRIVER and not driver:
        return "no NVIDIA driver is installed"
    if int(status) == _INSUFFICIENT_DRIVER:
        return (
            f"the driver is too old: it runs CUDA {_dotted(driver)}, cuda-bindings needs "
            f"{_dotted(wanted)}; update the driver, or pip install "
            f"'cuda-bindings<{driver // 1000 + 1}'"
        )
    if int(status) == _NO_DEVICE:
        return "the driver shows no GPU (see nvidia-smi and CUDA_VISIBLE_DEVICES)"
    return status_text(runtime, status)


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def status_text(runtime: Any, status: Any) -> str:
    """A CUDA status in CUDA's words."""
    return f"{status.name}: {_text(runtime.cudaGetErrorString(status)[1])}"


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
