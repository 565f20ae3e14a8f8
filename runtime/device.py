"""Looking for a GPU through cuda-bindings; nothing is started on it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from m2kit.errors import BackendError, require
from m2kit.runtime.jetson import cuda_extra, read_l4t

_DRIVER = "cuda.bindings.driver"
_NO_DEVICE = 100
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU.

    Attributes:
        name: As NVIDIA names it; every Jetson Orin is "Orin".
        capability: Compute capability such as "8.7".
        multiprocessors: How many it has.
        memory_bytes: Of all its memory; on a Jetson the system's.
    """

    name: str
    capability: str
    multiprocessors: int
    memory_bytes: int

    def __str__(self) -> str:
        """As messages and engine.json show it."""
        memory = f"{self.memory_bytes / 1e9:.0f} GB"
        return f"{self.name} ({self.capability}, {self.multiprocessors} SM, {memory})"


def probe() -> tuple[tuple[Device, ...], str]:
    """The GPUs that CUDA finds, and in words why there is none ("ok" otherwise)."""
    try:
        driver = importlib.import_module(_DRIVER)
    except ImportError:
        return (), "cuda-bindings is not installed, so CUDA was not asked"
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # cuda-bindings cannot load libcuda
        return (), "no NVIDIA driver is installed"
    if int(status) == _NO_DEVICE:
        return (), "the driver shows no GPU (see nvidia-smi and CUDA_VISIBLE_DEVICES)"
    if int(status):
        return (), status_text(driver, status)
    has, wanted = driver.cuDriverGetVersion()[1], driver.CUDA_VERSION
    if has // 1000 < wanted // 1000:  # within one major, older drivers do
        return (), (
            f"the driver is too old: it runs CUDA {_dotted(has)}, cuda-bindings is for "
            f"{_dotted(wanted)}; update the driver, or pip install "
            f"'cuda-bindings<{has // 1000 + 1}'"
        )
    devices = []
    for index in range(driver.cuDeviceGetCount()[1]):
        try:
            devices.append(_described(driver, index))
        except BackendError as error:
            return (), str(error)
    return tuple(devices), "ok"


def _described(driver: Any, index: int) -> Device:
    def ask(function: str, *arguments: Any) -> Any:
        status, value = getattr(driver, function)(*arguments)
        if int(status):
            raise BackendError(f"CUDA cannot describe GPU {index} ({status_text(driver, status)})")
        return value

    def attribute(name: str) -> int:
        kind = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(ask("cuDeviceGetAttribute", kind, handle))

    handle = ask("cuDeviceGet", index)
    major, minor = (attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
    name = ask("cuDeviceGetName", _NAME_BYTES, handle).partition(b"\0")[0]
    return Device(
        name=name.decode(errors="replace").strip(),
        capability=f"{major}.{minor}",
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        memory_bytes=int(ask("cuDeviceTotalMem", handle)),
    )


def find_device(what: str) -> Device:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses another); `what` needs it, as the
    start of a sentence.

    Raises:
        BackendError: No cuda-bindings, no driver, a driver that is too old, or no GPU.
    """
    require(_DRIVER, extra=cuda_extra(read_l4t()), what=what)
    devices, reason = probe()
    if not devices:
        raise BackendError(
            f"{what} needs an NVIDIA GPU: {reason}; where there is none, build an engine with "
            "`m2kit build-engine --backend onnxruntime`"
        )
    return devices[0]


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def status_text(driver: Any, status: Any) -> str:
    """A CUDA status in CUDA's words."""
    text = driver.cuGetErrorString(status)[1] or b"it gives no reason"
    return f"{status.name}: {text.decode(errors='replace')}"
