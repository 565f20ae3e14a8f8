"""doctor: what of this machine can run, and what to mend, by plain rules on what was found."""

from __future__ import annotations

import platform

import click

import m2kit
from m2kit.cli.options import json_option
from m2kit.cli.output import label, print_result
from m2kit.errors import install
from m2kit.runtime.backends import BACKENDS
from m2kit.runtime.jetson import cuda_extra, jetpack
from m2kit.runtime.machine import Machine, read_machine
from m2kit.runtime.trt.status import tensorrt_version, too_old


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what can run here, and what to mend."""
    machine = read_machine()
    found, ready = problems(machine), readiness(machine)
    about = {
        "m2kit": m2kit.__version__,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "driver": machine.driver or "no NVIDIA driver",
        "gpus": ", ".join(machine.gpus) or f"none: {machine.cuda}",
    }
    if machine.l4t is not None:
        known = jetpack(machine.l4t)
        release = ".".join(map(str, machine.l4t))
        about["jetson_linux"] = f"{release}, JetPack {known.version if known else 'not known'}"
        about["power_mode"] = machine.power_mode or "not told"
    rows = {label(name): value for name, value in about.items()}
    rows |= dict(machine.distributions) | ready
    rows |= {f"problem {number}": text for number, text in enumerate(found, start=1)}
    packages = dict(machine.distributions)
    value = {**about, "gpus": list(machine.gpus), "cuda": machine.cuda, "packages": packages}
    value |= {"backends": ready, "problems": found}
    print_result(rows, as_json, value)


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
            f"{known.version}: {install(cuda_extra(machine.l4t))}"
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
