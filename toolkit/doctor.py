"""What this machine can run, and why not the rest: read once, judged by plain rules.

Jetson facts: L4T releases and their TensorRT as NVIDIA's JetPack pages list them. Nothing here has
been run on a Jetson.
"""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "onnx",
    "onnx-ir", "polygraphy", "torch", "safetensors", "lightning",
)  # fmt: skip
_L4T_FILE = Path("/etc/nv_tegra_release")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_JETPACKS = {  # L4T release -> JetPack, its TensorRT and CUDA major
    (36, 3): ("6.0", "8.6", 12), (36, 4): ("6.1 or 6.2", "10.3", 12),
    (38, 2): ("7.0", "10.13", 13), (38, 4): ("7.1", "10.13", 13), (39, 2): ("7.2", "10.16", 13),
}  # fmt: skip


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


def read_machine() -> Machine:
    """Look at this machine; no backend is started."""
    distributions = {}
    for name in DISTRIBUTIONS:
        try:
            distributions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpus, cuda = _cuda_devices()
    return Machine(
        distributions=distributions,
        gpus=gpus,
        cuda=cuda,
        driver=driver_version(_text(_DRIVER_FILE)),
        l4t=l4t_release(_text(_L4T_FILE)),
        power_mode=_power_mode() if _L4T_FILE.exists() else None,
    )


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match.group(1) if match else None


def l4t_release(text: str) -> tuple[int, int] | None:
    """Release and minor revision in /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3"."""
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def jetpack(release: tuple[int, int]) -> tuple[str, str, int] | None:
    """JetPack, its TensorRT and its CUDA major of a Jetson Linux release."""
    return _JETPACKS.get(release)


def backends(machine: Machine) -> dict[str, str]:
    """Backend or task -> "ready", or what is missing and how to get it."""
    has, jetson = machine.distributions, machine.l4t is not None
    gpu = "ready" if machine.gpus else f"no GPU: {machine.cuda}"
    ort = "onnxruntime" in has or "onnxruntime-gpu" in has
    rows = {
        "onnxruntime, cpu": "ready" if ort else _install("cpu"),
        "onnxruntime, cuda": gpu if "onnxruntime-gpu" in has else _install("gpu"),
        "tensorrt-rtx plans": "ready to build; m2kit cannot run them yet"
        if {"tensorrt-rtx", "onnx-ir"} <= set(has)
        else _install("rtx"),
        "export": "ready"
        if ort and {"torch", "onnx-ir", "safetensors"} <= set(has)
        else _install("export,cpu"),
        "training": "ready" if {"torch", "lightning"} <= set(has) else _install("train"),
    }
    if jetson:
        rows["onnxruntime, cuda"] = "PyPI's wheel has no kernels for a Jetson; use the cpu provider"
        rows["tensorrt-rtx plans"] = "TensorRT-RTX does not support a Jetson"
    return rows


def problems(machine: Machine) -> list[str]:
    """What should be mended, each with its cure."""
    found, has = [], machine.distributions
    if "onnxruntime" in has and "onnxruntime-gpu" in has:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install the one you need"
        )
    tensorrt = has.get("tensorrt")
    if tensorrt and int(tensorrt.split(".")[0]) < 10:
        found.append(f"TensorRT {tensorrt} is too old: strongly typed engines need 10.3 or newer")
    known = jetpack(machine.l4t) if machine.l4t else None
    bindings = has.get("cuda-bindings")
    if known and bindings and int(bindings.split(".")[0]) != known[2]:
        found.append(
            f"cuda-bindings {bindings} does not match CUDA {known[2]} of JetPack {known[0]}: "
            f"pip install 'm2kit[jetson{known[0][0]}]'"
        )
    if known and tensorrt and not tensorrt.startswith(f"{known[1]}."):
        found.append(
            f"TensorRT {tensorrt} is not JetPack's {known[1]}: pip uninstall tensorrt, and make "
            "the environment with --system-site-packages"
        )
    if machine.driver and not machine.gpus:
        found.append(f"driver {machine.driver} is there, but CUDA finds no device: {machine.cuda}")
    return found


def _install(extra: str) -> str:
    return f"pip install 'm2kit[{extra}]'"


def _cuda_devices() -> tuple[tuple[str, ...], str]:
    """Devices that the CUDA runtime finds, and its status in words."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return (), "cuda-bindings is not installed, so CUDA was not asked"
    status, count = runtime.cudaGetDeviceCount()
    if int(status):
        return (), status.name.removeprefix("cudaError")
    devices = []
    for index in range(count):
        status, properties = runtime.cudaGetDeviceProperties(index)
        if not int(status):
            name = properties.name.decode() if isinstance(properties.name, bytes) else "device"
            devices.append(f"{name} ({properties.major}.{properties.minor})")
    return tuple(devices), "ok"


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


def system_text() -> str:
    """Operating system, architecture and Python in one line."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
