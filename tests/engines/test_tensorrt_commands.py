"""The commands with a TensorRT engine, on doubles."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import GOLDEN

import m2kit
from m2kit.cli import cli
from m2kit.errors import InputError

pytest.importorskip("torch")


@pytest.fixture
def bundle(exported):
    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_three_commands_on_a_gpu(bundle, tmp_path, gpu, monkeypatch):
    gpu()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "m.bundle")
    code, out, err = invoke("build-engine", "--batch", 2, "--low-memory", "--json")
    assert code == 0, err
    assert "building for tensorrt on Test GPU (8.6, 28 SM, 12 GB)" in err
    assert "building takes about 1.5 GB of memory" in err
    assert "building inter_step.plan, 4 of 5" in err
    assert json.loads(out)["backend"] == "tensorrt"
    code, out, err = invoke("generate", "--class", 1, "-n", 3, "--guidance", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["active"]["cuda_graphs"] == {"inter_step": "yes", "intra_step": "yes"}
    samples = Path("samples.png").read_bytes()
    # --batch is an upper limit: the engine takes two guided images at once
    code, _, err = invoke(
        "generate", "--class", 1, "-n", 3, "--guidance", 2, "--batch", 4, "-o", "more.png"
    )
    assert code == 0, err
    assert Path("more.png").read_bytes() == samples
    with (
        m2kit.open_engine("m.engine") as engine,
        pytest.raises(InputError, match="asked for 6: take a batch of 2"),
    ):
        next(engine.generate([1, 1, 1], m2kit.Sampling(guidance=2.0)))
    code, _, err = invoke("generate", "--class", 1, "-n", 3, "--provider", "cuda")
    assert (code, "provider: of the onnxruntime backend" in err) == (1, True)
    code, out, err = invoke("verify", "m.engine")
    assert code == 0, err
    assert "KL divergence" in out
    assert "inter_step: yes" in " ".join(out.split())
    code, out, err = invoke("inspect", "m.engine")
    assert code == 0, err
    assert "MATRIX_MULTIPLY HALF" in out
    # the double runs plans in this process alone; bench draws in another for its memory
    monkeypatch.setattr("m2kit.cli.benching._peak_memory", lambda *arguments: None)
    code, out, err = invoke("bench", "--engine", "m.engine", "--rounds", 1, "--guidance", 2)
    assert code == 0, err
    assert all(word in out for word in ("steps", "eager PyTorch", "at once", "Test GPU"))
    assert "bandwidth" not in out and "inter " not in out  # of the host; its launch alone
    code, _, err = invoke("bench", "--engine", "m.engine", "--threads", 1)
    assert (code, "threads: of the onnxruntime backend" in err) == (1, True)
    gpu(driver=0)
    code, _, err = invoke("build-engine", "--backend", "tensorrt")
    assert (code, "building for TensorRT needs an NVIDIA GPU" in err) == (1, True)
    code, out, err = invoke("build-engine", "-o", "cpu.engine", "--json")
    assert (code, "building for onnxruntime: no NVIDIA driver" in err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "onnxruntime", "--opt-level", "0"], "opt_level: onnxruntime has no such "
         "option; choose the backend tensorrt"),
        (["--backend", "tensorrt-rtx", "--low-memory"], "tensorrt-rtx has no such option; choose "
         "the backend tensorrt"),
        (["--backend", "tensorrt", "--compute-capability", "8.6"], "the backend tensorrt-rtx"),
    ],
)  # fmt: skip
def test_an_option_of_another_backend_is_refused(bundle, arguments, words):
    code, _, err = invoke("build-engine", bundle, *arguments)
    assert (code, words in err) == (1, True), err
