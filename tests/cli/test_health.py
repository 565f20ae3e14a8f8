import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from m2kit.cli import cli
from m2kit.cli.health import problems, readiness
from m2kit.errors import install
from m2kit.runtime.jetson import JetPack, cuda_extra, jetpack, l4t_release
from m2kit.runtime.machine import Machine, driver_version, read_machine

BARE = Machine({"numpy": "2.0.0"}, (), "InsufficientDriver", None, None, None)
DRIVEN = replace(BARE, driver="550.1")
JETSON = replace(BARE, l4t=(36, 4), gpus=("Orin (8.7)",), cuda="ok", driver="540.4.0")


def having(machine=BARE, **versions):
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(machine, distributions={**machine.distributions, **names})


def test_what_is_missing_is_named_with_its_extra():
    rows = readiness(DRIVEN)
    assert rows["onnxruntime, cpu"] == install("cpu")
    assert rows["onnxruntime, cuda"] == install("gpu")
    both = readiness(having(DRIVEN, onnxruntime="1.32.0"))["onnxruntime, cuda"]
    assert both == f"pip uninstall onnxruntime, then {install('gpu')}"
    assert rows["export"] == install("export,cpu")
    assert not problems(BARE)


def test_nothing_is_advised_that_a_machine_without_a_driver_cannot_use():
    rows = readiness(having(onnxruntime="1.32.0"))
    for name in ("onnxruntime, cuda", "tensorrt engines"):
        assert rows[name] == "needs an NVIDIA GPU, and there is no driver of one"


def test_what_is_there_is_ready():
    rows = readiness(having(onnxruntime="1.32.0", torch="2.13", onnx_ir="1", safetensors="0.8"))
    assert (rows["onnxruntime, cpu"], rows["export"]) == ("ready", "ready")
    assert readiness(having(onnxruntime_gpu="1"))["onnxruntime, cuda"] == (
        "no GPU: InsufficientDriver"
    )
    with_gpu = replace(having(onnxruntime_gpu="1"), gpus=("H100 (9.0)",), cuda="ok")
    assert readiness(with_gpu)["onnxruntime, cuda"] == "ready"


def test_tensorrt_says_what_it_lacks():
    def state(machine):
        rows = readiness(machine)
        return rows["tensorrt engines"], rows["tensorrt-rtx engines"]

    assert state(DRIVEN) == (install("tensorrt"), install("rtx"))
    assert state(having(tensorrt="10.3.0"))[0].startswith("cuda-bindings is missing: pip install")
    both = having(tensorrt="10.3.0", cuda_bindings="13.5", tensorrt_rtx="1.7", onnx_ir="1")
    both = having(both, polygraphy="0.53")
    assert state(both) == (
        "no GPU: InsufficientDriver",
        "ready to build; to run: no GPU: InsufficientDriver",
    )
    assert state(replace(both, gpus=("H100 (9.0)",), cuda="ok")) == ("ready", "ready")
    assert "--system-site-packages" in state(JETSON)[0]


def test_the_extra_fits_the_release():
    assert [cuda_extra(release) for release in (None, (36, 4), (38, 2), (39, 2))] == [
        "tensorrt",
        "jetson6",
        "jetson7",
        "jetson7",
    ]


def test_a_jetson_is_not_told_to_use_what_does_not_run_on_it():
    rows = readiness(having(JETSON, onnxruntime_gpu="1", tensorrt_rtx="1.7", onnx_ir="1"))
    assert "no kernels for a Jetson" in rows["onnxruntime, cuda"]
    assert "does not support a Jetson" in rows["tensorrt-rtx engines"]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (having(onnxruntime="1", onnxruntime_gpu="1"), "are both installed"),
        (having(tensorrt="8.6.1"), "TensorRT 8.6.1 is too old"),
        (having(tensorrt="10.2.0"), "TensorRT 10.2.0 is too old"),
        (having(tensorrt_cu12="10.3.0", cuda_bindings="13.5"), "are of two CUDA majors"),
        (having(JETSON, cuda_bindings="13.5.0"), r"does not match CUDA 12 .*\.\[jetson6\]"),
        (having(JETSON, tensorrt="11.4.0"), "is not JetPack's 10.3"),
        (replace(BARE, driver="470.1"), "driver 470.1 is there, but CUDA finds no device"),
    ],
)
def test_each_problem_has_its_line(machine, words):
    (found,) = problems(machine)
    assert re.search(words, found)


def test_what_fits_a_jetson_is_no_problem():
    assert not problems(having(JETSON, cuda_bindings="12.9.0", tensorrt="10.3.0"))
    assert jetpack((39, 2)) == JetPack("7.2", "10.16", 13)
    assert jetpack((99, 1)) is None


def test_releases_and_drivers_are_read_off_their_files():
    text = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    assert l4t_release(text) == (36, 4)
    assert l4t_release("") is None
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5"
    assert driver_version(text) == "550.54.15"
    assert driver_version("") is None


def test_the_command_tells_of_this_machine():
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["packages"]["numpy"] == read_machine().distributions["numpy"]
    assert set(value) >= {"m2kit", "system", "driver", "gpus", "backends", "problems"}
    assert "numpy" in CliRunner().invoke(cli, ["doctor"]).stdout
