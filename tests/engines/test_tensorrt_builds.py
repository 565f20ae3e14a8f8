"""Building for `tensorrt` 10.3 to 11 on doubles: what is asked of the builder, what is refused, and
what an engine of another machine says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from conftest import GOLDEN

import m2kit
from m2kit import contract
from m2kit.build import BuildOptions
from m2kit.cli import cli
from m2kit.engines.building import build_engine
from m2kit.engines.trt.process import _environment
from m2kit.errors import BackendError, FolderError, InputError, ParityError
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.outputs import is_leftover
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision

pytest.importorskip("torch")
SIZES = ((16, 16),)  # of a tokenizer alone
VERSIONS = ["10.3.0", "10.9.0.34", "10.16.0.72", "11.4.0.106"]


@pytest.fixture
def bundle(exported):
    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]


@pytest.fixture
def tokenizer(exported):
    """The bundle that is built fastest."""
    return exported(GOLDEN / "tokenizer_tiny.ckpt")[0]


def build(bundle, folder, **options):
    return build_engine(bundle, folder, "tensorrt", BuildOptions(**options))


def asked(engine, plan="inter_step.plan"):
    """What the builder was configured with, as the double writes it into its plan."""
    data = (engine / plan).read_bytes()
    start = data.index(b"\n") + 1
    size = int.from_bytes(data[start : start + 8], "little")
    return json.loads(data[start + 8 : start + 8 + size])["asked"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_and_passes_the_gate(bundle, tmp_path, gpu, version):
    gpu(version)
    manifest = build(bundle, tmp_path / "a.engine")
    assert manifest.parity.passed
    assert manifest.parity.devices == ("Test GPU (8.6, 28 SM, 12 GB)",)
    assert manifest.built.backend_version == manifest.versions["tensorrt"] == version
    target = manifest.built.target
    assert (target.gpu, target.compute_capabilities) == ("Test GPU", ("8.6",))
    assert read_manifest(tmp_path / "a.engine", ENGINE) == manifest
    found = asked(tmp_path / "a.engine")
    assert found["flags"] == []  # TF32, which is on by default, is off
    assert (found["streams"], found["level"], found["hardware"]) == (0, 3, "NONE")
    layers = manifest.built.plans["inter_step"].layers
    assert layers["MATRIX_MULTIPLY HALF"] > 0
    assert not [kind for kind in layers if kind.startswith(("SOFTMAX H", "UNARY H", "REDUCE H"))]
    with m2kit.open_engine(tmp_path / "a.engine") as engine:
        assert engine.sample([1]).shape == (1, 4, 4, 2)


def test_options_reach_the_builder(tokenizer, tmp_path, gpu):
    gpu("11.4.0.106")
    build(
        tokenizer, tmp_path / "a.engine", image_sizes=SIZES, version_compatible=True,
        hardware_compatible="same-capability", opt_level=0, workspace=64,
    )  # fmt: skip
    found = asked(tmp_path / "a.engine", "encoder.16x16.plan")
    assert found["flags"] == ["VERSION_COMPATIBLE"]
    assert found["hardware"] == "SAME_COMPUTE_CAPABILITY"
    assert (found["level"], found["limits"]) == (0, {"WORKSPACE": 64 << 20})
    build(tokenizer, tmp_path / "b.engine", image_sizes=SIZES, low_memory=True)
    found = asked(tmp_path / "b.engine", "encoder.16x16.plan")
    assert found["limits"] == {"WORKSPACE": 256 << 20}
    assert found["level"] == 2


def test_an_option_that_a_version_lacks_is_refused(bundle, tmp_path, gpu):
    gpu("10.3.0")
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 has no hardware_compatible same"):
        build(bundle, tmp_path / "a.engine", hardware_compatible="same-capability")
    assert not list(tmp_path.iterdir())


def test_timings_are_kept_for_a_gpu_and_a_version(tokenizer, tmp_path, gpu, home):
    def cache(name, **options):
        build(tokenizer, tmp_path / name, image_sizes=SIZES, **options)
        return asked(tmp_path / name, "encoder.16x16.plan")["timing_cache"]

    gpu()
    folder = home / ".cache" / "m2kit" / "timing"
    assert cache("off", no_timing_cache=True) == ""
    assert not folder.exists()
    assert cache("first") == ""
    assert cache("second").startswith("timed;")
    assert [path.name for path in folder.iterdir()] == [
        "tensorrt-10.3.0-Test-GPU-8-6-28-SM-12-GB.cache"
    ]
    gpu(name="Orin", capability="8.7")
    assert cache("other") == ""
    folder.chmod(0o500)
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    assert cache("read-only") == ""


def test_a_float32_engine_needs_a_float32_bundle(bundle, half, tmp_path, gpu):
    gpu()
    with pytest.raises(InputError, match="is half precision already"):
        build(half, tmp_path / "x", precision=Precision.FLOAT32)
    manifest = build(half, tmp_path / "h.engine")
    same = build(bundle, tmp_path / "f.engine")
    assert set(manifest.built.plans) == set(contract.graph_names(manifest.spec))
    assert manifest.built.plans == same.built.plans
    assert manifest.moved_to_float == same.moved_to_float
    assert manifest.parity == same.parity


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A bundle in half precision, by the command line."""
    folder = tmp_path_factory.mktemp("half")
    result = CliRunner().invoke(
        cli,
        ["export", "--ckpt", str(GOLDEN / "ar_tiny.ckpt"), "--spec", '{"heads": 4}',
         "--precision", "fp16", "-o", str(folder / "half.bundle"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["parity"]["precision"] == "float16, emulated with float32 sums, against float32"
    assert value["parity"]["passed"]
    return folder / "half.bundle"


def test_a_half_bundle_is_for_tensorrt_and_holds_only_what_it_needs(bundle, half):
    fused = {contract.onnx_file(graph, contract.ONNXRUNTIME) for graph in contract.STEP_GRAPHS}
    names = {path.name for path in bundle.iterdir()}
    assert {path.name for path in half.iterdir()} == names - fused and fused < names
    assert read_manifest(half, BUNDLE).precision is Precision.FLOAT16
    assert (half / "weights.bin").stat().st_size < (bundle / "weights.bin").stat().st_size
    result = CliRunner().invoke(cli, ["build-engine", str(half), "--backend", "onnxruntime"])
    assert (result.exit_code, "is in half precision, which is for TensorRT" in result.stderr) == (
        1,
        True,
    )
    result = CliRunner().invoke(cli, ["verify", str(half), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["passed"]


def test_a_device_with_a_half_bundle_needs_no_onnx(half, tmp_path):
    """Neither this process nor the ones that build; TensorRT-RTX's parser is the real one."""
    pytest.importorskip("tensorrt_rtx")
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
        (absent / f"{name}.py").write_text("raise ImportError('absent')")
    script = (
        "from pathlib import Path\n"
        "from m2kit.build import BuildOptions\n"
        "from m2kit.engines.building import build_engine\n"
        f"build_engine(Path({str(half)!r}), Path('x.engine'), 'tensorrt-rtx',"
        " BuildOptions(compute_capabilities=('8.6',)))"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120,
        env=os.environ | {"PYTHONPATH": "absent"},
    )  # fmt: skip
    assert read_manifest(tmp_path / "x.engine", ENGINE).precision is Precision.FLOAT16


def test_a_bundle_behind_a_link_is_built_in_place(tokenizer, tmp_path, gpu):
    gpu()
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk" / "deep")
    shutil.copytree(tokenizer, tmp_path / "home" / "m.bundle")
    home = tmp_path / "home"
    build(home / "m.bundle", home / "m.engine", image_sizes=SIZES, precision=Precision.FLOAT32)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed by signal 9: probably not enough memory; close other programs, "
         "build with low_memory, add swap"),
        (signal.SIGUSR1, "crashed with signal 10 inside TensorRT; `m2kit doctor` shows"),
    ],
)  # fmt: skip
def test_how_a_build_died_is_told(bundle, tmp_path, gpu, monkeypatch, number, words):
    gpu()
    monkeypatch.setattr("m2kit.engines.trt.process._settle", lambda: os.kill(os.getpid(), number))
    with pytest.raises(BackendError, match=words):
        build(bundle, tmp_path / "a.engine")
    assert not list(tmp_path.iterdir())


def test_a_plans_process_gets_the_environment_it_needs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}/there")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    own, rtx = _environment("tensorrt"), _environment("tensorrt-rtx")
    assert own["PYTHONPATH"] == rtx["PYTHONPATH"] == f"{tmp_path / 'here'}{os.pathsep}/there"
    assert own["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # or it would build on another GPU
    assert "CUDA_DEVICE_ORDER" not in rtx  # whose bytes are the same every time


def test_memory_that_the_builder_finds_short_is_told_as_such(bundle, tmp_path, gpu, monkeypatch):
    gpu()
    monkeypatch.setenv("TENSORRT_DOUBLE_FAILS", "OutOfMemory (no further information)")
    with pytest.raises(BackendError, match=r"not enough memory to build encoder .*low_memory"):
        build(bundle, tmp_path / "a.engine")
    with pytest.raises(BackendError, match=r"not enough memory .*; close other programs, add swap"):
        build(bundle, tmp_path / "a.engine", low_memory=True)
    monkeypatch.setenv("TENSORRT_DOUBLE_FAILS", "no kernel")
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 does not take encoder: no kernel"):
        build(bundle, tmp_path / "a.engine")


NO_KERNEL = (
    "Error Code: 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[inter.0/attention...inter.0/Add]}%s.)"
)


@pytest.mark.parametrize(
    ("why", "options", "cure"),
    [
        ("", {}, "close other programs, build with low_memory, add swap, or build on a "),
        (" due to insufficient workspace", {"low_memory": True}, "build it without "
         "low_memory, or with workspace 1024"),
        ("", {"workspace": 64}, "build it with a larger workspace, or without"),
    ],
)  # fmt: skip
def test_a_layer_without_a_kernel_that_fits_is_told_with_the_cap_to_lift(
    bundle, tmp_path, gpu, monkeypatch, why, options, cure
):
    gpu()
    monkeypatch.setenv("TENSORRT_DOUBLE_FAILS", NO_KERNEL % why)
    with pytest.raises(BackendError) as error:
        build(bundle, tmp_path / "a.engine", **options)
    told = "no kernel of a layer of encoder could be used, most often for lack of memory (TensorRT"
    assert str(error.value).startswith(told)
    assert f"); {cure}" in str(error.value)
    assert "\n" not in str(error.value)


def test_libraries_that_cannot_be_loaded_are_told_from_a_missing_package(
    bundle, tmp_path, gpu, monkeypatch
):
    gpu()
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = (
        r"cannot load the package tensorrt: libnvinfer\.so\.10: .*; install TensorRT again, on a"
    )
    with pytest.raises(BackendError, match=words):
        build(bundle, tmp_path / "a.engine")


def test_the_gate_refuses_plans_that_do_not_agree(bundle, tmp_path, gpu, monkeypatch):
    """A builder that gets a layer wrong: no engine appears."""
    cuda, trt = gpu()
    original = trt.IExecutionContext._compute

    def wrong(self, engine):
        original(self, engine)
        if "logits.0" in engine._tensors:
            cuda.view(self._addresses["logits.0"], 4)[:] = 0xFF  # a NaN

    monkeypatch.setattr(trt.IExecutionContext, "_compute", wrong)
    with pytest.raises(ParityError, match=r"the engine does not agree .* logits of sub-token 0"):
        build(bundle, tmp_path / "a.engine")
    assert not list(tmp_path.iterdir())


RTX = BuildOptions(compute_capabilities=("8.6", "8.9"))


def test_an_engine_built_elsewhere_is_checked_when_it_first_runs(bundle, tmp_path, gpu):
    pytest.importorskip("tensorrt_rtx")
    gpu("1.7.1.116", "tensorrt_rtx", driver=0)
    folder = tmp_path / "a.engine"
    manifest = build_engine(bundle, folder, "tensorrt-rtx", RTX)
    assert manifest.parity == ParityReport()
    assert (manifest.parity.passed, manifest.parity.summary) == (None, "built, not run")
    gpu("1.7.1.116", "tensorrt_rtx")
    said = []

    def begin(stage, total=None):
        said.append(stage)
        return lambda count: None

    m2kit.open_engine(folder, begin=begin).backend.close()
    assert said == [
        "first run on Test GPU (8.6, 28 SM, 12 GB)",
        "comparing with PyTorch's reference (Test GPU (8.6, 28 SM, 12 GB))",
    ]
    with m2kit.open_engine(folder) as engine:
        assert engine.info.parity.passed
    assert read_manifest(folder, ENGINE).parity.devices == ("Test GPU (8.6, 28 SM, 12 GB)",)
    m2kit.open_engine(folder, begin=begin).backend.close()
    assert len(said) == 2
    gpu("1.7.1.116", "tensorrt_rtx", name="RTX 4090", capability="8.9")
    m2kit.open_engine(folder, begin=begin).backend.close()
    assert said[2:] == [
        "first run on RTX 4090 (8.9, 28 SM, 12 GB)",
        "comparing with PyTorch's reference (RTX 4090 (8.9, 28 SM, 12 GB))",
    ]
    devices = read_manifest(folder, ENGINE).parity.devices
    assert devices == ("Test GPU (8.6, 28 SM, 12 GB)", "RTX 4090 (8.9, 28 SM, 12 GB)")
    gpu("1.7.1.116", "tensorrt_rtx", name="H100", capability="9.0")
    with pytest.raises(FolderError, match=r"built for compute capability 8\.6, 8\.9, here H100"):
        m2kit.open_engine(folder)


def test_tensorrt_rtx_is_tried_at_once_where_a_target_is_here(bundle, tmp_path, gpu, monkeypatch):
    gpu("1.7.1.116", "tensorrt_rtx", name="H100", capability="9.0")
    manifest = build_engine(bundle, tmp_path / "a.engine", "tensorrt-rtx", RTX)
    assert manifest.parity.passed is None
    _, trt = gpu("1.7.1.116", "tensorrt_rtx")
    manifest = build_engine(bundle, tmp_path / "b.engine", "tensorrt-rtx", RTX)
    assert manifest.parity.devices == ("Test GPU (8.6, 28 SM, 12 GB)",)
    assert asked(tmp_path / "b.engine")["flags"] == ["REQUIRE_USER_ALLOCATION"]
    monkeypatch.setattr(trt.IExecutionContext, "is_stream_capturable", lambda self, stream: False)
    with m2kit.open_engine(tmp_path / "b.engine") as engine:
        engine.sample([1])
        graphs = engine.backend.active()["cuda_graphs"]
    assert set(graphs.values()) == {"no: the plan cannot be captured on this stream"}


def test_a_killed_build_leaves_nothing_that_opens_and_the_next_succeeds(bundle, tmp_path, gpu):
    gpu()
    script = (
        "from pathlib import Path\n"
        "from m2kit.engines.building import build_engine\n"
        "from m2kit.engines.trt import builder as b\n"
        "from m2kit.runtime.device import Device\n"
        "b.find_device = lambda what: Device('Test GPU', '8.6', 28, 12 * 10**9)\n"
        f"build_engine(Path({str(bundle)!r}), Path('a.engine'), 'tensorrt')"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".a.engine.m2kit-*/lfq*.plan")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    assert is_leftover(left.name)
    with pytest.raises(FolderError, match="expected an engine folder"):
        m2kit.open_engine(left)
    build(bundle, tmp_path / "a.engine")
    assert [path.name for path in tmp_path.iterdir()] == ["a.engine"]
    m2kit.open_engine(tmp_path / "a.engine").backend.close()
