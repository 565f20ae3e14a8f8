"""Real TensorRT-RTX plans, built without a GPU: what is parsed, in which precision, and what fails.

Nothing here runs a plan."""

import json
import os
import shutil
import signal
import subprocess
import sys

import onnx
import pytest
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT, GOLDEN, run_m2kit

from m2kit import contract
from m2kit.cli import cli
from m2kit.config import PRESETS
from m2kit.engines.precision import write_half
from m2kit.engines.tensorrt_builder import build_tensorrt_engine, needed_bytes
from m2kit.engines.tensorrt_process import PlanOptions, build_plan
from m2kit.errors import BackendError, InputError
from m2kit.manifest import BUNDLE, ENGINE, check_files, read_manifest

pytest.importorskip("tensorrt_rtx")
TARGETS = ("8.6", "8.9")
RTX = PlanOptions("tensorrt-rtx", TARGETS)
ONE = PlanOptions("tensorrt-rtx", ("8.6",))


@pytest.fixture(scope="module")
def bundles(exported):
    return {
        "ar_tiny": exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0],
        "digits": exported(DIGITS_CHECKPOINT)[0],
        "tokenizer": exported(GOLDEN / "tokenizer_tiny.ckpt")[0],
    }


def static_sizes(spec):
    """Every symbolic dimension of one image."""
    height, width = spec.image_size
    factor = spec.tokenizer.downsampling
    return {"R": 2, "B": 1, "H": height, "W": width, "h": height // factor, "w": width // factor}


@pytest.mark.parametrize("name", ["ar_tiny", "digits"])
def test_all_five_graphs_become_plans_and_twice_the_same_bytes(bundles, tmp_path, name):
    files = []
    for attempt in ("a.engine", "b.engine"):
        path = tmp_path / attempt
        build_tensorrt_engine(bundles[name], path, RTX, batch=2)
        manifest = read_manifest(path, ENGINE)
        check_files(path, manifest, trust_seen_weights=False)
        files.append(manifest.files)
    assert files[0] == files[1]
    size = manifest.spec.image_size
    assert set(files[0]) == {"reference.npz", *map(contract.plan_file, contract.STEP_GRAPHS)} | {
        contract.plan_file(graph, size) for graph in contract.TOKENIZER_GRAPHS
    }
    build = manifest.build
    assert (build["rows"], build["compute_capabilities"]) == (4, list(TARGETS))
    assert build["image_sizes"] == [list(manifest.spec.image_size)]
    assert manifest.parity == {"passed": None, "checks": {}, "state": "built, not run"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.engine", "b.engine"]


@pytest.mark.parametrize("name", ["ar_tiny", "digits"])
def test_the_parsed_network_has_the_precision_of_every_mark(bundles, tmp_path, name):
    manifest = read_manifest(bundles[name], BUNDLE)
    write_half(bundles[name], manifest, tmp_path)
    sizes = static_sizes(manifest.spec)
    for graph in contract.graph_names(manifest.spec):
        path = tmp_path / f"{graph}.onnx"
        io = contract.graph_io(manifest.spec, graph)
        built = build_plan(path, tmp_path / "x.plan", io, sizes, ONE)
        assert "TF32" not in built["flags"]
        layers = built["layers"]
        marks = {"FLOAT": [], "HALF": []}
        for node in onnx.load(path, load_external_data=False).graph.node:
            mark = {entry.key: entry.value for entry in node.metadata_props}[contract.PRECISION]
            marks["FLOAT" if mark == contract.FLOAT else "HALF"].append(node.op_type)
        for kind, operator in (("MATRIX_MULTIPLY", "MatMul"), ("CONVOLUTION", "Conv")):
            for precision, operators in marks.items():
                found = layers.get(f"{kind} {precision}", 0)
                assert found == operators.count(operator), (graph, kind, precision)
        for kind in ("NORMALIZATION", "SOFTMAX", "UNARY"):
            assert f"{kind} HALF" not in layers
        assert "Conv" not in marks["FLOAT"]
        assert layers.get("UNARY FLOAT", 0) == marks["FLOAT"].count("Sqrt")
        means = marks["FLOAT"].count("ReduceMean")
        assert layers.get("REDUCE FLOAT", 0) >= means
        assert layers.get("REDUCE HALF", 0) <= marks["HALF"].count("ReduceSum")
        statistics = {"Add", "Sub", "Mul", "Div"}  # of norms and RoPE; integers are not counted
        floats = sum(operator in statistics for operator in marks["FLOAT"])
        halves = sum(operator in statistics for operator in marks["HALF"])
        assert layers.get("ELEMENTWISE HALF", 0) <= halves + marks["HALF"].count("Where")
        if graph in contract.STEP_GRAPHS:
            assert layers["ELEMENTWISE FLOAT"] >= 0.8 * floats


def test_a_float32_engine_is_float32_throughout_and_has_no_tf32(bundles, tmp_path):
    manifest = build_tensorrt_engine(
        bundles["ar_tiny"], tmp_path / "a.engine", ONE, precision="float32"
    )
    assert manifest.precision == "float32"
    for details in manifest.build["graphs"].values():
        assert details["flags"] == ["REQUIRE_USER_ALLOCATION"]  # TF32 is on by default
        assert not [kind for kind in details["layers"] if not kind.endswith(" FLOAT")]


def test_a_leak_of_half_into_an_island_would_be_seen(bundles, tmp_path):
    """The same check on a graph whose norms were marked as any other node."""
    manifest = read_manifest(bundles["ar_tiny"], BUNDLE)
    shutil.copytree(bundles["ar_tiny"], tmp_path / "bundle")
    path = tmp_path / "bundle" / "inter_step.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Sqrt":
            node.metadata_props[0].value = contract.ANY
    path.write_bytes(model.SerializeToString())
    (tmp_path / "half").mkdir()
    write_half(tmp_path / "bundle", manifest, tmp_path / "half")
    io = contract.graph_io(manifest.spec, "inter_step")
    sizes = static_sizes(manifest.spec)
    graph = tmp_path / "half" / "inter_step.onnx"
    layers = build_plan(graph, tmp_path / "x.plan", io, sizes, ONE)["layers"]
    assert layers["UNARY HALF"] == 2 * manifest.spec.transformer.inter_layers


def test_a_tokenizer_builds_at_a_size_that_is_given(bundles, tmp_path):
    with pytest.raises(InputError, match="give --image-size"):
        build_tensorrt_engine(bundles["tokenizer"], tmp_path / "t", RTX)
    with pytest.raises(InputError, match="must be multiples of 2"):
        build_tensorrt_engine(bundles["tokenizer"], tmp_path / "t", RTX, image_sizes=[(16, 17)])
    manifest = build_tensorrt_engine(
        bundles["tokenizer"], tmp_path / "t", ONE, image_sizes=[(16, 24), (8, 8)]
    )
    assert manifest.build["image_sizes"] == [[16, 24], [8, 8]]
    sizes, graphs = ("16x24", "8x8"), ("encoder", "lfq", "decoder")
    plans = {f"{graph}.{size}.plan" for graph in graphs for size in sizes}
    assert set(manifest.files) == {"reference.npz", *plans}


def test_a_compute_capability_it_has_not_is_refused_with_those_it_has(bundles, tmp_path):
    with pytest.raises(InputError, match=r"no compute capability 8\.7; it builds for 7\.5, 8\.0"):
        options = PlanOptions("tensorrt-rtx", ("8.6", "8.7"))
        build_tensorrt_engine(bundles["ar_tiny"], tmp_path / "x", options)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_tensorrt_does_not_take_is_one_error_with_its_reason(bundles, tmp_path):
    manifest = read_manifest(bundles["ar_tiny"], BUNDLE)
    io = contract.graph_io(manifest.spec, "lfq")
    model = onnx.load(bundles["ar_tiny"] / "lfq.onnx")
    model.graph.node[0].op_type = "Bernoulli"
    (tmp_path / "lfq.onnx").write_bytes(model.SerializeToString())
    sizes = static_sizes(manifest.spec)
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* does not take lfq: .*Bernoulli"):
        build_plan(tmp_path / "lfq.onnx", tmp_path / "lfq.plan", io, sizes, ONE)
    assert not (tmp_path / "lfq.plan").exists()


def test_too_little_memory_is_told_before_anything_is_built(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("m2kit.engines.tensorrt_builder.available_bytes", lambda: 400_000_000)
    with pytest.raises(BackendError, match=r"needs about 0\.5 GB .* 0\.4 GB are available; close"):
        build_tensorrt_engine(bundles["ar_tiny"], tmp_path / "a.engine", RTX)
    assert not list(tmp_path.iterdir())
    assert (
        needed_bytes(PRESETS["ar-b"].spec, "tensorrt-rtx") > 2_226_252 * 1024
    )  # what it was measured to take


def test_a_build_that_is_killed_is_one_error(bundles, tmp_path, monkeypatch):
    """As the system does where memory runs out."""

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("m2kit.engines.tensorrt_process._settle", kill)
    with pytest.raises(BackendError, match=r"encoder was killed by signal 9: .*, add swap, or"):
        build_tensorrt_engine(bundles["ar_tiny"], tmp_path / "a.engine", RTX)
    assert not list(tmp_path.iterdir())


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_builds_and_says_that_it_was_not_run(bundles, tmp_path, gpu):
    gpu(driver=0)
    engine = tmp_path / "a.engine"
    code, out, err = invoke(
        "build-engine", bundles["ar_tiny"], "--backend", "tensorrt-rtx", "-o", engine,
        "--compute-capability", "8.6", "--batch", "3", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["parity"]["state"] == "built, not run"
    assert "CONVOLUTION HALF" in invoke("inspect", engine)[1]
    for command in (["generate", "--engine", engine], ["verify", engine]):
        code, _, err = invoke(*command)
        assert code == 1
        assert "needs an NVIDIA GPU: no NVIDIA driver is installed" in err
    code, _, err = invoke(
        "build-engine",
        bundles["ar_tiny"],
        "--batch",
        "3",
        "-o",
        tmp_path / "b",
        "--backend",
        "onnxruntime",
    )
    assert (code, "takes any batch and image size" in err) == (1, True)
    code, _, err = invoke(
        "build-engine", bundles["ar_tiny"], "--backend", "tensorrt-rtx", "--image-size", "16"
    )
    assert (code, "expected height and width such as 256,256" in err) == (2, True)


def test_without_the_package_the_extra_is_named(bundles, tmp_path):
    (tmp_path / "tensorrt_rtx.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tensorrt_rtx'\", name='tensorrt_rtx')"
    )
    done = run_m2kit(
        "build-engine", bundles["ar_tiny"], "--backend", "tensorrt-rtx", "-o", "x.engine",
        cwd=tmp_path, check=False, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'm2kit[rtx]'" in done.stderr
    assert not (tmp_path / "x.engine").exists()


def test_it_needs_no_torch(bundles, tmp_path):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from m2kit.engines.tensorrt_builder import build_tensorrt_engine\n"
        "from m2kit.engines.tensorrt_process import PlanOptions\n"
        f"build_tensorrt_engine(Path({str(bundles['ar_tiny'])!r}), Path('x.engine'),"
        " PlanOptions('tensorrt-rtx', ('8.6',)))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "x.engine" / "engine.json").is_file()
