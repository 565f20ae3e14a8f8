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
from m2kit.build import BuildOptions
from m2kit.cli import cli
from m2kit.config import PRESETS
from m2kit.engines.building import build_engine
from m2kit.engines.half_precision import write_half
from m2kit.engines.trt.estimate import needed_bytes
from m2kit.engines.trt.process import build_plan
from m2kit.errors import BackendError, InputError
from m2kit.folder_check import check_folder
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision

pytest.importorskip("tensorrt_rtx")
TARGETS = ("8.6", "8.9")  # what it builds for by default
ONE = ("8.6",)
PLAN = ("tensorrt-rtx", BuildOptions(compute_capabilities=ONE))


def build(bundle, folder, capabilities=TARGETS, **options):
    given = BuildOptions(compute_capabilities=capabilities, **options)
    return build_engine(bundle, folder, "tensorrt-rtx", given)


@pytest.fixture(scope="module")
def bundles(exported):
    return {
        "ar_tiny": exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0],
        "digits": exported(DIGITS_CHECKPOINT)[0],
        "tokenizer": exported(GOLDEN / "tokenizer_tiny.ckpt")[0],
    }


def static_shapes(spec, graph):
    """Of a graph's inputs, for one image."""
    sizes = {"R": 2, "B": 1} | contract.image_dimensions(spec, spec.image_size)
    return tuple(tensor.fixed_shape(sizes) for tensor in contract.graph_io(spec, graph).inputs)


@pytest.mark.parametrize("name", ["ar_tiny", "digits"])
def test_all_five_graphs_become_plans_and_twice_the_same_bytes(bundles, tmp_path, name):
    files = []
    for attempt in ("a.engine", "b.engine"):
        path = tmp_path / attempt
        build(bundles[name], path, batch=2)
        manifest = read_manifest(path, ENGINE)
        check_folder(path, manifest, trust_seen_weights=False)
        files.append(manifest.files)
    assert files[0] == files[1]
    spec, size = manifest.spec, manifest.spec.image_size
    assert set(files[0]) == {"reference.npz", *map(contract.plan_file, contract.STEP_GRAPHS)} | {
        contract.plan_file(graph, size) for graph in contract.tokenizer_graphs(spec)
    }
    built = manifest.built
    assert (built.rows, built.target.gpu) == (4, None)
    assert built.target.compute_capabilities == built.options.compute_capabilities == TARGETS
    assert built.image_sizes == (spec.image_size,)
    assert manifest.parity == ParityReport()
    assert (manifest.parity.passed, manifest.parity.summary) == (None, "built, not run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.engine", "b.engine"]


@pytest.mark.parametrize("name", ["ar_tiny", "digits"])
def test_the_parsed_network_has_the_precision_of_every_mark(bundles, tmp_path, name):
    manifest = read_manifest(bundles[name], BUNDLE)
    write_half(bundles[name], manifest, tmp_path)
    for graph in contract.graph_names(manifest.spec):
        path = tmp_path / f"{graph}.onnx"
        shapes = static_shapes(manifest.spec, graph)
        built = build_plan(path, tmp_path / "x.plan", shapes, *PLAN)
        assert "TF32" not in built.flags
        layers = built.layers
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
    manifest = build(bundles["ar_tiny"], tmp_path / "a.engine", ONE, precision=Precision.FLOAT32)
    assert manifest.precision is Precision.FLOAT32
    assert set(manifest.built.plans) == set(contract.graph_names(manifest.spec))
    for plan in manifest.built.plans.values():
        assert plan.flags == ("REQUIRE_USER_ALLOCATION",)  # TF32 is on by default
        assert not [kind for kind in plan.layers if not kind.endswith(" FLOAT")]


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
    shapes = static_shapes(manifest.spec, "inter_step")
    graph = tmp_path / "half" / "inter_step.onnx"
    layers = build_plan(graph, tmp_path / "x.plan", shapes, *PLAN).layers
    assert layers["UNARY HALF"] == 2 * manifest.spec.transformer.inter_layers


def test_a_tokenizer_builds_at_a_size_that_is_given(bundles, tmp_path):
    with pytest.raises(InputError, match="give an image size"):
        build(bundles["tokenizer"], tmp_path / "t")
    with pytest.raises(InputError, match=r"image size 16,17: .* multiples of 2, found"):
        build(bundles["tokenizer"], tmp_path / "t", image_sizes=((16, 17),))
    given = ((16, 24), (8, 8))
    manifest = build(bundles["tokenizer"], tmp_path / "t", ONE, image_sizes=given)
    assert manifest.built.image_sizes == given
    sizes, graphs = ("16x24", "8x8"), ("encoder", "lfq", "decoder")
    plans = {f"{graph}.{size}.plan" for graph in graphs for size in sizes}
    assert set(manifest.files) == {"reference.npz", *plans}


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_weights_with_a_second_name_are_built(bundles, tmp_path, precision):
    shutil.copytree(bundles["ar_tiny"], tmp_path / "m.bundle")
    os.link(tmp_path / "m.bundle" / "weights.bin", tmp_path / "other")
    build(tmp_path / "m.bundle", tmp_path / "m.engine", ONE, precision=precision)


def test_a_compute_capability_it_has_not_is_refused_with_those_it_has(bundles, tmp_path):
    with pytest.raises(InputError, match=r"no compute capability 8\.7; it builds for 7\.5, 8\.0"):
        build(bundles["ar_tiny"], tmp_path / "x", ("8.6", "8.7"))
    assert not list(tmp_path.iterdir())


def test_a_graph_that_tensorrt_does_not_take_is_one_error_with_its_reason(bundles, tmp_path):
    manifest = read_manifest(bundles["ar_tiny"], BUNDLE)
    model = onnx.load(bundles["ar_tiny"] / "lfq.onnx")
    model.graph.node[0].op_type = "Bernoulli"
    (tmp_path / "lfq.onnx").write_bytes(model.SerializeToString())
    shapes = static_shapes(manifest.spec, "lfq")
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* does not take lfq: .*Bernoulli"):
        build_plan(tmp_path / "lfq.onnx", tmp_path / "lfq.plan", shapes, *PLAN)
    assert not (tmp_path / "lfq.plan").exists()


def test_too_little_memory_is_told_before_anything_is_built(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("m2kit.engines.trt.estimate.available_bytes", lambda: 400_000_000)
    with pytest.raises(BackendError, match=r"needs about 0\.5 GB .* 0\.4 GB are available; close"):
        build(bundles["ar_tiny"], tmp_path / "a.engine")
    assert not list(tmp_path.iterdir())
    assert (
        needed_bytes(PRESETS["ar-b"].spec, "tensorrt-rtx") > 2_226_252 * 1024
    )  # what it was measured to take


def test_a_build_that_is_killed_is_one_error(bundles, tmp_path, monkeypatch):
    """As the system does where memory runs out."""

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("m2kit.engines.trt.process._settle", kill)
    with pytest.raises(BackendError, match=r"encoder was killed by signal 9: .*, add swap, or"):
        build(bundles["ar_tiny"], tmp_path / "a.engine")
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
    parity = json.loads(out)["parity"]
    assert (parity["passed"], parity["checks"], parity["precision"]) == (None, {}, "")
    assert read_manifest(engine, ENGINE).parity.summary == "built, not run"
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
    words = "batch: onnxruntime has no such option; choose the backend tensorrt or tensorrt-rtx"
    assert (code, words in err) == (1, True)
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
    assert "pip install '.[rtx]' in the clone" in done.stderr
    assert not (tmp_path / "x.engine").exists()


def test_it_needs_no_torch(bundles, tmp_path):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from m2kit.build import BuildOptions\n"
        "from m2kit.engines.building import build_engine\n"
        f"build_engine(Path({str(bundles['ar_tiny'])!r}), Path('x.engine'), 'tensorrt-rtx',"
        " BuildOptions(compute_capabilities=('8.6',)))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "x.engine" / "engine.json").is_file()
