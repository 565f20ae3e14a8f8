"""Integer weights: the quantizer, the engines, and the gate that judges them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import DIGITS_CHECKPOINT, GOLDEN, run_m2kit, tiny_spec

import m2kit
from m2kit.build import BuildOptions, Trial
from m2kit.engines import building
from m2kit.engines.building import build_engine
from m2kit.engines.graph_files import WeightsFile
from m2kit.engines.ort import quantization, writing
from m2kit.engines.ort.quantization import SCHEMES, quantize_blocks, quantize_graph
from m2kit.errors import BackendError, InputError, ParityError
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest, write_manifest
from m2kit.precision import AUTO, Precision
from m2kit.records import to_json
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.evaluation.report import evaluate

FLOAT32, INT8, INT4 = Precision.FLOAT32, Precision.INT8, Precision.INT4


def build(bundle, folder, precision, **options):
    return build_engine(bundle, folder, "onnxruntime", BuildOptions(precision=precision, **options))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(64, 48), (128, 16), (80, 5), (32, 1)])
def test_our_quantizer_gives_the_bytes_of_onnxruntimes(bits, shape, tmp_path):
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    weight = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
    weight[:32, 0] = 0  # a block without a scale
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [1, shape[0]])],
        [value("y", onnx.TensorProto.FLOAT, [1, shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    (made,) = quantizer.model.graph().node
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in quantizer.model.graph().initializer}
    values, scales = quantize_blocks(weight, bits, 32)
    np.testing.assert_array_equal(scales, tensors[made.input[2]].ravel())
    theirs = tensors[made.input[1]].reshape(values.shape)
    if bits == 4:
        theirs, values = (np.stack([q & 15, q >> 4], axis=-1) for q in (theirs, values))
    theirs, values = (q.reshape(shape[1], -1)[:, : shape[0]] for q in (theirs, values))
    apart = np.abs(theirs.astype(int) - values.astype(int))
    assert apart.max() <= 1 and apart.mean() < 1e-3  # a tie may be rounded either way


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_within_half_a_step_of_the_exact_ones(bits):
    weight = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    values, scales = quantize_blocks(weight, bits, 32)
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], 32)
    steps = scales.reshape(3, 3, 1)
    restored = ((values.astype(np.float32) - 2 ** (bits - 1)) * steps).reshape(3, 96)[:, :70].T
    error = np.abs(restored - weight).reshape(70, 3)
    bound = np.abs(np.repeat(steps[..., 0], 32, axis=1)[:, :70].T)
    clipped = (values == 2**bits - 1).reshape(3, 96)[:, :70].T
    assert clipped.mean() < 0.2
    assert (error[~clipped] <= bound[~clipped] * 0.5001).all()
    assert (error <= bound * 1.0001).all()  # the far end of the range is one step short


@pytest.fixture(scope="module")
def engines(exported, tmp_path_factory):
    """Builds an engine of a model and precision once: (folder, manifest)."""
    made = {}

    def make(checkpoint, precision, **overrides):
        key = (checkpoint, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp(precision.value) / f"{checkpoint.stem}.engine"
            bundle = exported(checkpoint, **overrides)[0]
            made[key] = folder, build(bundle, folder, precision)
        return made[key]

    return make


TINY = GOLDEN / "ar_tiny.ckpt"


@pytest.mark.parametrize(
    ("checkpoint", "precision", "overrides"),
    [
        (DIGITS_CHECKPOINT, INT8, {}),
        (DIGITS_CHECKPOINT, INT4, {}),
        (TINY, INT8, {"heads": 4}),
    ],
    ids=["digits-int8", "digits-int4", "tiny-int8"],
)
def test_engines_with_integer_weights_pass_the_gate_and_say_what_they_are(
    engines, checkpoint, precision, overrides
):
    folder, manifest = engines(checkpoint, precision, **overrides)
    spec, record = manifest.spec.transformer, manifest.built.quantization
    layers, scheme = spec.inter_layers + spec.intra_layers, SCHEMES[precision]
    assert record.matmuls == 5 * layers + spec.sub_tokens
    assert (manifest.precision, record.bits) == (precision, scheme.bits)
    assert record == scheme.record(record.matmuls)
    assert manifest.built.options == BuildOptions(precision=precision)
    assert manifest.parity.passed
    assert set(to_json(manifest.parity.quality)) == {
        "psnr_db", "first_divergence", "psnr_greedy_db"
    }  # fmt: skip
    assert read_manifest(folder, ENGINE) == manifest
    for graph in ("inter_step", "intra_step"):
        ops = manifest.lowerings["onnxruntime"][graph].ops
        assert "MatMul" not in ops and ops["MatMulNBits"] and ops["GroupQueryAttention"]
    with m2kit.open_engine(folder) as engine:
        assert engine.info.precision is precision
        first = engine.sample([1, 2], m2kit.Sampling(seed=1))
        np.testing.assert_array_equal(first, engine.sample([1, 2], m2kit.Sampling(seed=1)))
        assert engine.backend.active()["precision"] == precision.value


def test_no_float_copy_of_a_quantized_weight_is_left(engines):
    folder, manifest = engines(DIGITS_CHECKPOINT, INT8)
    spec = manifest.spec.transformer
    model = onnx.load(folder / "inter_step.onnxruntime.onnx", load_external_data=False)
    stored = {t.name: t.data_type for t in model.graph.initializer if t.external_data}
    floats = {name for name, kind in stored.items() if kind == onnx.TensorProto.FLOAT}
    matrices = {name for name in floats if ".scales" not in name and "norm" not in name}
    assert matrices == {
        "transformer.sub_token_embeddings",
        "transformer.class_emb.embedding_table.weight",
    }
    assert sum(kind == onnx.TensorProto.UINT8 for kind in stored.values()) == 5 * spec.inter_layers


def test_shuffled_scales_do_not_pass_the_gate(exported, tmp_path, monkeypatch):
    def broken(weight, bits, block_size):
        values, scales = quantize_blocks(weight, bits, block_size)
        return values, np.random.default_rng(0).permutation(scales)

    monkeypatch.setattr(quantization, "quantize_blocks", broken)
    bundle = exported(DIGITS_CHECKPOINT)[0]
    with pytest.raises(ParityError, match=r"KL divergence.*accept its quality"):
        build(bundle, tmp_path / "a.engine", INT8)
    assert not list(tmp_path.iterdir())
    manifest = build(bundle, tmp_path / "a.engine", INT8, accept_quality=True)
    assert manifest.parity.passed is False
    with m2kit.open_engine(tmp_path / "a.engine") as engine:
        assert engine.info.parity.passed is False
    monkeypatch.setattr("m2kit.runtime.ort.backend.host_name", lambda: "Another CPU")
    with m2kit.open_engine(tmp_path / "a.engine") as engine:  # its first run there
        assert engine.info.parity.passed is False
        assert engine.info.parity.devices == (*manifest.parity.devices, "Another CPU")


def test_accepting_the_quality_accepts_no_broken_tokenizer(exported, tmp_path, monkeypatch):
    optimised = writing._optimised

    def negated(job, graph):
        model = optimised(job, graph)
        if graph == "decoder":
            output = model.graph.outputs[0]
            node = ir.node("Neg", [output], outputs=[ir.Value(name="negated")])
            node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
            model.graph.append(node)
            name, output.name = output.name, "before"
            node.outputs[0].name = name
            model.graph.outputs[0] = node.outputs[0]
        return model

    monkeypatch.setattr(writing, "_optimised", negated)
    with pytest.raises(ParityError, match=r"decoder \(difference.*please report"):
        bundle = exported(DIGITS_CHECKPOINT)[0]
        build(bundle, tmp_path / "a.engine", INT8, accept_quality=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", [INT8, INT4])
def test_the_bytes_a_position_needs_are_those_of_integers_scales_and_norms(engines, precision):
    _, manifest = engines(DIGITS_CHECKPOINT, precision)
    spec, scheme = manifest.spec.transformer, SCHEMES[precision]
    block = scheme.block_size

    def stored(size_in, size_out, bits=scheme.bits):
        blocks = -(-size_in // block)
        return size_out * blocks * (block * bits // 8 + 4)

    width, ffn = spec.width, spec.ffn_width
    shapes = ((width, 3 * width), (width, width), (width, ffn), (width, ffn), (ffn, width))
    layer = sum(stored(*shape) for shape in shapes) + 2 * width * 4
    expected = {
        "inter_step": spec.inter_layers * layer,
        "intra_step": spec.intra_layers * layer + width * 4,
        "heads": sum(stored(width, size, scheme.head_bits) for size in spec.vocabularies),
        "row": width * 4,
        "tables": (sum(spec.vocabularies) + spec.classes + 1) * width * 4,
    }
    record = manifest.built.weight_bytes
    found = record.graphs | {name: getattr(record, name) for name in ("heads", "row", "tables")}
    assert {name: found[name] for name in expected} == expected
    assert record.total == sum(found.values()) - found["row"]


def test_digits_drawn_with_integer_weights_are_as_often_recognised(engines):
    accuracy = {}
    for precision in (FLOAT32, INT8, INT4):
        with m2kit.open_engine(engines(DIGITS_CHECKPOINT, precision)[0]) as engine:
            accuracy[precision] = evaluate(engine, DIGITS, per_class=20, seed=0)[0].recognised
    # Of 200 images: one point is two of them, and a seed moves it by as much.
    assert accuracy[INT8] >= accuracy[FLOAT32] - 0.02
    assert accuracy[INT4] >= accuracy[FLOAT32] - 0.03


def test_only_a_quality_gate_can_be_accepted(exported, tmp_path):
    bundle = exported(DIGITS_CHECKPOINT)[0]
    for precision in ("auto", "fp32"):
        done = run_m2kit(
            "build-engine", bundle, "--backend", "onnxruntime", "--precision", precision,
            "--accept-quality", cwd=tmp_path, check=False,
        )  # fmt: skip
        assert "accept_quality is for int8 or int4 alone" in done.stderr


def test_a_bundle_without_fused_steps_says_so_and_its_integers_stay_off_a_gpu(
    exported, tmp_path, monkeypatch
):
    bundle = tmp_path / "old.bundle"
    shutil.copytree(exported(DIGITS_CHECKPOINT)[0], bundle)
    manifest = read_manifest(bundle, BUNDLE)
    portable = {"portable": manifest.lowerings["portable"]}
    write_manifest(bundle, replace(manifest, lowerings=portable))
    done = run_m2kit(
        "build-engine", bundle, "-o", "old.engine", "--backend", "onnxruntime",
        "--precision", "int8", cwd=tmp_path,
    )  # fmt: skip
    assert "taking the portable steps: this bundle has no fused ones" in done.stderr
    monkeypatch.setattr("m2kit.runtime.ort.backend._provider", lambda ort, name: name)
    with pytest.raises(BackendError, match="is for a CPU alone"):
        m2kit.open_engine(tmp_path / "old.engine", provider="cuda")


def test_a_graph_with_nothing_to_quantize_is_an_error(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "quantize_graph", lambda *_: 0)
    with pytest.raises(BackendError, match="no matmul to quantize"):
        build(exported(DIGITS_CHECKPOINT)[0], tmp_path / "a.engine", INT4)


def test_auto_keeps_the_fastest_that_passes(exported, tmp_path, monkeypatch):
    speeds = {FLOAT32: 3.0, INT8: 2.0, INT4: 1.0}
    monkeypatch.setattr(building, "position_seconds", lambda engine: speeds[engine.info.precision])
    bundle = exported(TINY, heads=4)[0]  # int4 does not pass here
    manifest = build(bundle, tmp_path / "a.engine", AUTO)
    assert manifest.precision is INT8
    assert manifest.built.tried == {
        "float32": Trial(passed=True, position_ms=3000.0),
        "int8": Trial(passed=True, position_ms=2000.0),
        "int4": Trial(passed=False),
    }
    assert manifest.built.options == BuildOptions(precision=AUTO)
    assert read_manifest(tmp_path / "a.engine", ENGINE) == manifest
    speeds[INT8] = 4.0
    manifest = build(bundle, tmp_path / "b.engine", AUTO)
    assert manifest.precision is FLOAT32
    for name in ("a", "b"):
        with m2kit.open_engine(tmp_path / f"{name}.engine") as engine:
            engine.sample([0])
        assert not [path for path in (tmp_path / f"{name}.engine").iterdir() if path.is_dir()]


def test_a_tokenizer_alone_has_nothing_to_quantize(exported, tmp_path):
    bundle = exported(GOLDEN / "tokenizer_tiny.ckpt")[0]
    with pytest.raises(InputError, match="tokenizer only"):
        build(bundle, tmp_path / "a.engine", INT8)


def test_heads_keep_eight_bits(exported, tmp_path):
    bundle = exported(DIGITS_CHECKPOINT)[0]
    model = ir.load(bundle / "intra_step.onnxruntime.onnx")
    with WeightsFile(tmp_path) as weights:
        found = quantize_graph(model, SCHEMES[INT4], weights)
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert len(nodes) == found
    bits = {str(n.outputs[0].name): n.attributes["bits"].as_int() for n in nodes}
    assert {b for name, b in bits.items() if name.startswith("logits.")} == {8}
    assert {b for name, b in bits.items() if not name.startswith("logits.")} == {4}


@pytest.mark.parametrize("precision", [INT8, INT4])
def test_models_without_fused_steps_are_quantized_too(precision, tmp_path):
    """Heads of 8 channels: the portable steps, with integer weights."""
    from m2kit.export.exporter import export_bundle
    from m2kit.training.checkpoints.random_weights import write_random_checkpoint
    from m2kit.training.checkpoints.reading import read_checkpoint

    write_random_checkpoint(tmp_path / "a.pt", tiny_spec(), 0)
    overrides = {"heads": 2, "grid": (2, 3)}
    checkpoint = read_checkpoint(tmp_path / "a.pt", overrides=overrides)
    export_bundle(checkpoint, tmp_path / "a.bundle", "a")
    manifest = build(tmp_path / "a.bundle", tmp_path / "a.engine", precision, accept_quality=True)
    assert set(manifest.lowerings) == {"portable"}
    assert manifest.lowerings["portable"]["inter_step"].ops["MatMulNBits"] == 10
    with m2kit.open_engine(tmp_path / "a.engine") as engine:
        assert engine.sample([0, 1]).shape == (2, 2, 3, 2)


def test_the_command_line_builds_and_warns(exported, tmp_path):
    bundle = exported(TINY, heads=4)[0]
    done = run_m2kit(
        "build-engine", bundle, "-o", "a.engine", "--backend", "onnxruntime",
        "--precision", "int4", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the engine does not agree")
    done = run_m2kit(
        "build-engine", bundle, "-o", "a.engine", "--backend", "onnxruntime",
        "--precision", "int4", "--accept-quality", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert "WARNING" in done.stderr
    value = json.loads(done.stdout)
    assert value["precision"] == "int4" and value["quantized_matmuls"] == 27
    assert not value["parity"]["passed"]
    done = run_m2kit("verify", "a.engine", cwd=tmp_path, check=False)
    assert "keep it all the same (--accept-quality)" in done.stderr and "report" not in done.stderr
    done = run_m2kit(
        "build-engine", bundle, "-o", "a.engine", "--backend", "onnxruntime",
        "--precision", "int4", "--accept-quality", cwd=tmp_path,
    )  # fmt: skip
    assert " of 9 checks passed, int4 against float32, KL divergence " in done.stdout
    assert "largest difference" not in done.stdout
    assert "; failed: " in done.stdout and "9 of 9" not in done.stdout
    done = run_m2kit("bench", "--no-baseline", "--rounds", "1", cwd=tmp_path)
    assert "WARNING: a.engine did not pass its quality gate" in done.stderr
    done = run_m2kit("generate", "--class", "1", "-n", "1", cwd=tmp_path)
    assert "WARNING: a.engine did not pass its quality gate" in done.stderr
    for backend, precision in (("onnxruntime", "fp16"), ("tensorrt-rtx", "int8")):
        done = run_m2kit(
            "build-engine", bundle, "--backend", backend, "--precision", precision,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert f"precision {precision}: {backend} takes fp" in done.stderr
