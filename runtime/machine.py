"""What this machine has: installed packages, GPUs, driver, and on a Jetson its release; read once,
and judged by the backends' own rules.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from m2kit.runtime.device import probe
from m2kit.runtime.jetson import read_l4t

DISTRIBUTIONS = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx", "cuda-bindings", "onnx", "onnx-ir", "polygraphy", "torch", "safetensors",
    "lightning",
)  # fmt: skip
NO_DRIVER = "needs an NVIDIA GPU, and there is no driver of one"
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found.

    Attributes:
        distributions: Name -> version of the installed ones of DISTRIBUTIONS.
        gpus: Name and compute capability of each CUDA device.
        cuda: Why there is none, "ok" otherwise.
        driver: NVIDIA driver version, None without one.
        l4t: Jetson Linux release such as (36, 4), None elsewhere.
        power_mode: Of a Jetson, where nvpmodel tells.
    """

    distributions: Mapping[str, str]
    gpus: tuple[str, ...]
    cuda: str
    driver: str | None
    l4t: tuple[int, int] | None
    power_mode: str | None

    def has(self, *names: str) -> bool:
        """Whether all of these distributions are installed."""
        return set(names) <= set(self.distributions)

    @property
    def gpu_status(self) -> str:
        """ "ready", or why CUDA shows no GPU."""
        return "ready" if self.gpus else f"no GPU: {self.cuda}"


def read_machine() -> Machine:
    """Look at this machine; no backend is started."""
    (devices, cuda), l4t = probe(), read_l4t()
    return Machine(
        distributions=installed(DISTRIBUTIONS),
        gpus=tuple(map(str, devices)),
        cuda=cuda,
        driver=driver_version(_text(_DRIVER_FILE)),
        l4t=l4t,
        power_mode=_power_mode() if l4t else None,
    )


def installed(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those of these distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match.group(1) if match else None


def _power_mode() -> str | None:
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode: *(\S+)", done.stdout)
    return match.group(1) if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
