"""What this machine can run, and why not the rest: read once, judged by plain rules."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from m2kit.jetson import cuda_extra, jetpack, read_l4t

DISTRIBUTIONS = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx", "cuda-bindings", "onnx", "onnx-ir", "polygraphy", "torch", "safetensors",
    "lightning",
)  # fmt: skip
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


def read_machine() -> Machine:
    """Look at this machine; no backend is started."""
    from m2kit.runtime.device import probe

    distributions = {}
    for name in DISTRIBUTIONS:
        try:
            distributions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    devices, cuda = probe()
    return Machine(
        distributions=distributions,
        gpus=tuple(map(str, devices)),
        cuda=cuda,
        driver=driver_version(_text(_DRIVER_FILE)),
        l4t=(l4t := read_l4t()),
        power_mode=_power_mode() if l4t else None,
    )


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match.group(1) if match else None


def backends(machine: Machine) -> dict[str, str]:
    """Backend or task -> "ready", or what is missing and how to get it."""
    has, jetson = machine.distributions, machine.l4t is not None
    gpu = "ready" if machine.gpus else f"no GPU: {machine.cuda}"
    ort = "onnxruntime" in has or "onnxruntime-gpu" in has
    rows = {
        "onnxruntime, cpu": "ready" if ort else _install("cpu"),
        "onnxruntime, cuda": gpu if "onnxruntime-gpu" in has else _install("gpu"),
        "tensorrt engines": _tensorrt(machine, gpu),
        "tensorrt-rtx engines": _tensorrt_rtx(machine, gpu),
        "export": "ready"
        if ort and {"torch", "onnx-ir", "safetensors"} <= set(has)
        else _install("export,cpu"),
        "training": "ready" if {"torch", "lightning"} <= set(has) else _install("train"),
    }
    if jetson:
        rows["onnxruntime, cuda"] = "PyPI's wheel has no kernels for a Jetson; use the cpu provider"
        rows["tensorrt-rtx engines"] = "TensorRT-RTX does not support a Jetson"
    return rows


def problems(machine: Machine) -> list[str]:
    """What should be mended, each with its cure."""
    found, has = [], machine.distributions
    if "onnxruntime" in has and "onnxruntime-gpu" in has:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install the one you need"
        )
    tensorrt = _tensorrt_version(machine)
    if tensorrt and _too_old(tensorrt):
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


def _tensorrt(machine: Machine, gpu: str) -> str:
    has = machine.distributions
    version = _tensorrt_version(machine)
    if version is None:
        if machine.l4t is not None:
            return "JetPack's tensorrt is not seen: use a venv with --system-site-packages"
        return _install("tensorrt")
    if _too_old(version):
        return f"TensorRT {version} is too old"
    if "cuda-bindings" not in has:
        return f"cuda-bindings is missing: {_install(cuda_extra(machine.l4t))}"
    if gpu != "ready":
        return gpu
    return "ready" if "polygraphy" in has else "ready to run; to build, pip install polygraphy"


def _tensorrt_version(machine: Machine) -> str | None:
    """Of the package tensorrt, under whichever name it was installed."""
    names = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    return next((machine.distributions[n] for n in names if n in machine.distributions), None)


def _too_old(version: str) -> bool:
    from m2kit.runtime.tensorrt_library import PRODUCTS, TENSORRT, version_of

    return version_of(version) < PRODUCTS[TENSORRT].oldest


def _tensorrt_rtx(machine: Machine, gpu: str) -> str:
    has = set(machine.distributions)
    if not {"tensorrt-rtx", "onnx-ir", "polygraphy"} <= has:
        return _install("rtx")
    if "cuda-bindings" not in has:
        return f"ready to build; to run, {_install('rtx')} brings cuda-bindings"
    return "ready" if gpu == "ready" else f"ready to build; to run: {gpu}"


def _install(extra: str) -> str:
    return f"pip install 'm2kit[{extra}]'"


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
