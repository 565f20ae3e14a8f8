"""Typed half precision: what is half and what is float, and what half precision does to a model.

Half precision is judged on the emulated graph: ONNX Runtime's CPU provider computes half graphs in
float32 and hides rounding and overflow."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import DIGITS_CHECKPOINT, GOLDEN, PORTABLE_OPS
from draw_quality import draw_quality

from m2kit import Sampling, contract
from m2kit.engines.emulation import EmulatedBackend, emulated, open_emulated
from m2kit.engines.half_bundle import write_half_bundle
from m2kit.engines.half_precision import HALF_LIMIT, SCORE_LIMIT, half_graph, write_half
from m2kit.errors import FolderError
from m2kit.export.exporter import export_bundle
from m2kit.manifest import BUNDLE
from m2kit.manifest_file import files_table, read_manifest
from m2kit.runtime.engine import Engine
from m2kit.runtime.ort.backend import OnnxRuntimeBackend
from m2kit.runtime.quality import score_quality
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.evaluation.report import evaluate

HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def halved(exported, tmp_path_factory):
    """Makes (exact engine, half engine of the emulated graphs, folder of the typed graphs)."""
    opened = []

    def make(bundle):
        manifest = read_manifest(bundle, BUNDLE)
        folder, typed = tmp_path_factory.mktemp("half"), tmp_path_factory.mktemp("typed")
        half = write_half(bundle, manifest, folder)
        write_half(bundle, manifest, typed)
        engines = [
            Engine(manifest.spec, OnnxRuntimeBackend(bundle, manifest), defaults=manifest.sampling),
            Engine(manifest.spec, EmulatedBackend(folder, half)),
        ]
        opened.extend(engines)
        return (*engines, typed)

    yield make
    for engine in opened:
        engine.backend.close()


@pytest.fixture(scope="module")
def ar_tiny(exported, halved):
    return halved(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0])


@pytest.fixture(scope="module")
def digits(exported, halved):
    return halved(exported(DIGITS_CHECKPOINT)[0])


def inferred_types(path):
    """Value name -> element type of every value of a graph, by ONNX's own inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return graph, types | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("model", ["ar_tiny", "digits"])
def test_the_typed_graphs_are_valid_and_keep_their_contract(model, request):
    exact, _, folder = request.getfixturevalue(model)
    for graph in contract.graph_names(exact.spec):
        path = folder / f"{graph}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        assert {node.op_type for node in onnx.load(path).graph.node} <= PORTABLE_OPS
        io = contract.graph_io(exact.spec, graph)
        proto, types = inferred_types(path)
        for declared, found in ((io.inputs, proto.input), (io.outputs, proto.output)):
            expected = {"compute": HALF, "float32": SINGLE, "int64": onnx.TensorProto.INT64}
            assert [(t.name, expected[t.dtype]) for t in declared] == [
                (v.name, types[v.name]) for v in found
            ]


@pytest.mark.parametrize("model", ["ar_tiny", "digits"])
def test_every_node_has_the_precision_of_its_mark_and_weights_that_of_their_reader(model, request):
    exact, _, folder = request.getfixturevalue(model)
    products = 0
    for graph in contract.graph_names(exact.spec):
        proto, types = inferred_types(folder / f"{graph}.onnx")
        for node in proto.node:
            if node.op_type == "Cast":
                continue
            marks = {entry.key: entry.value for entry in node.metadata_props}
            wanted = SINGLE if marks[contract.PRECISION] == contract.FLOAT else HALF
            touched = {types[name] for name in (*node.input, *node.output)}
            assert touched & {HALF, SINGLE} <= {wanted}, node.name
            products += node.op_type in ("MatMul", "Conv") and wanted == HALF
    assert products > 10
    exact_bytes = sum(entry.bytes for entry in files_table(exact.backend._folder).values())
    assert sum(entry.bytes for entry in files_table(folder).values()) < exact_bytes


@pytest.mark.parametrize("graph", contract.STEP_GRAPHS)
def test_the_cache_is_read_as_it_is_and_never_cast(ar_tiny, graph):
    """In float the keys of every layer would be read, written and read again at every step."""
    _, _, folder = ar_tiny
    proto, types = inferred_types(folder / f"{graph}.onnx")
    read = {value.name for value in proto.input if contract.is_past(value.name)}
    for node in proto.node:
        if read & set(node.input):
            assert node.op_type in ("MatMul", "Transpose")
            if node.op_type == "Transpose":
                read.add(node.output[0])
            assert types[node.output[0]] == HALF


def test_scores_too_large_for_half_stay_float(exported):
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    manifest = read_manifest(bundle, BUNDLE)
    io = contract.graph_io(manifest.spec, contract.INTER_STEP)
    graph = ir.load(bundle / "inter_step.onnx").graph
    (keys,) = (value for value in graph.inputs if value.name == contract.past_key(1))
    (transposed,) = (use.node for use in keys.uses())
    (product,) = (use.node for use in transposed.outputs[0].uses())
    name = product.outputs[0].name
    maxima = manifest.maxima["inter_step"]
    assert 0 < maxima[name] < SCORE_LIMIT
    for largest, wanted in ((SCORE_LIMIT, ir.DataType.FLOAT16), (129.0, ir.DataType.FLOAT)):
        half = half_graph(bundle / "inter_step.onnx", io, {**maxima, name: largest})
        (found,) = (n for n in half.model.graph if n.name == product.name)
        assert found.outputs[0].dtype == wanted


def test_ids_and_images_stay_near_on_the_golden_model(ar_tiny, golden):
    exact, half, _ = ar_tiny
    data = golden("ar_tiny")
    tokens = np.stack([data["index_pre"], data["index_post"]], -1).reshape(2, 4, 4, 2)
    quality = score_quality(
        exact.score(data["class_id"], tokens), half.score(data["class_id"], tokens)
    )
    assert min(quality.top1) >= 0.99
    assert max(quality.kl) < 1e-3
    assert np.abs(exact.decode(tokens) - half.decode(tokens)).max() < 0.05


def test_a_half_bundle_is_opened_in_emulation_and_left_as_it_is(exported, ar_tiny, tmp_path):
    exact = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]

    def copied(folder):
        return read_manifest(shutil.copytree(exact, folder), BUNDLE)

    write_half_bundle(copied, tmp_path / "half.bundle")
    before = sorted((tmp_path / "half.bundle").iterdir())
    tokens = np.random.default_rng(0).integers(0, 4, (2, *ar_tiny[0].transformer.grid, 2))
    with open_emulated(tmp_path / "half.bundle") as engine:
        place = engine.backend.path("decoder").parent
        assert "emulated" in engine.backend.active()
        found = engine.score([1, 2], tokens)
    assert not place.exists()
    assert sorted((tmp_path / "half.bundle").iterdir()) == before
    for one, other, full in zip(
        found, ar_tiny[1].score([1, 2], tokens), ar_tiny[0].score([1, 2], tokens), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert not np.array_equal(one, full)
    with pytest.raises(FolderError, match="expected a bundle in half precision, found float32"):
        open_emulated(exact)


def test_digits_keep_their_distributions_and_draws(digits):
    exact, half, _ = digits
    classes = np.arange(100) % 10
    tokens = exact.sample(classes, Sampling(seed=1))
    scores = score_quality(exact.score(classes, tokens), half.score(classes, tokens))
    assert min(scores.top1) >= 0.99
    assert max(scores.kl) < 1e-3
    draws = draw_quality(exact, half, classes, Sampling(seed=1))
    assert draws.cdf_mean < 0.005
    assert draws.cdf_p99 < 0.02
    assert draws.equal_ids >= 0.8
    assert draws.explained == draws.differing_images


def test_half_precision_draws_digits_that_are_recognised_as_often(digits):
    exact, half, _ = digits
    half.defaults = exact.defaults
    right, found = (evaluate(engine, DIGITS, per_class=20, seed=0)[0] for engine in (exact, half))
    assert right.images == 200
    assert abs(found.recognised - right.recognised) <= 0.01


def test_the_half_encoder_differs_only_at_latents_near_zero(digits):
    exact, half, _ = digits
    images = exact.decode(exact.sample(np.arange(20) % 10, Sampling(seed=2))).clip(-1, 1)
    right, found = exact.latents(images), half.latents(images)
    differing = (right > 0) != (found > 0)
    assert differing.mean() <= 0.005
    # Latents of digits reach 1.8; half rounds each of some 20 layers to 11 bits.
    assert np.abs(right[differing]).max(initial=0.0) < 0.01
    assert np.abs(right - found).max() < 0.01


def rms_norm_of(dtype):
    """x / sqrt(mean(x^2)) as typed nodes without an island."""
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape((1, 4)))
    square = ir.node("Mul", [x, x], name="square")
    axes = ir.Value(name="axes", const_value=ir.tensor([1], name="axes"))
    axes.type = ir.TensorType(ir.DataType.INT64)
    mean = ir.node("ReduceMean", [square.outputs[0], axes], name="mean")
    root = ir.node("Sqrt", mean.outputs, name="root")
    divide = ir.node("Div", [x, root.outputs[0]], name="divide")
    nodes = [square, mean, root, divide]
    for node in nodes:
        node.outputs[0].name = f"{node.name}/out"
        node.outputs[0].type = ir.TensorType(dtype)
    divide.outputs[0].shape = ir.Shape((1, 4))
    graph = ir.Graph(
        [x], divide.outputs, nodes=nodes, initializers=[axes], opset_imports={"": 18}, name="norm"
    )
    return ir.Model(graph, ir_version=10)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"x": x})[0]


def test_the_emulation_overflows_where_half_does_and_a_half_graph_on_a_cpu_does_not():
    """300^2 is over float16's 65504: the norm of 300 is 0 in half, and 1 where it is hidden."""
    x = np.full((1, 4), 300, np.float16)
    model = rms_norm_of(ir.DataType.FLOAT16)
    assert run(model, x).tolist() == [[1.0] * 4]
    with np.errstate(over="ignore"):
        expected = x / np.sqrt((x * x).mean(axis=1, keepdims=True))
    assert expected.tolist() == [[0.0] * 4]
    found = run(emulated(model), x)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


def test_the_emulation_rounds_every_result():
    x = np.array([[1.0, 1.001, 0.3333, 700.0]], np.float16) / 7
    with np.errstate(all="ignore"):
        square = x * x
        mean = square.astype(np.float32).mean(axis=1, keepdims=True).astype(np.float16)
        root = np.sqrt(mean.astype(np.float32)).astype(np.float16)
        expected = (x.astype(np.float32) / root.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(run(emulated(rms_norm_of(ir.DataType.FLOAT16)), x), expected)


def test_the_emulation_does_not_see_sums_kept_in_half():
    """What it is said not to show: 4096 ones are 4096 here, and 2048 where the sum itself is half,
    as a kernel on a GPU may have it."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape((1, 4096)))
    ones = ir.Value(name="w", const_value=ir.tensor(np.ones((4096, 1), np.float16), name="w"))
    ones.type, ones.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape((4096, 1))
    product = ir.node("MatMul", [x, ones], name="product")
    product.outputs[0].name, product.outputs[0].shape = "y", ir.Shape((1, 1))
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    graph = ir.Graph(
        [x], product.outputs, nodes=[product], initializers=[ones], opset_imports={"": 18}, name="p"
    )
    found = run(emulated(ir.Model(graph, ir_version=10)), np.ones((1, 4096), np.float16))
    in_half = np.cumsum(np.ones(4096, np.float16), dtype=np.float16)[-1]
    assert (found.item(), in_half) == (4096, 2048)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The golden AR model with one layer's feed-forward scaled until half overflows in it."""
    folder = tmp_path_factory.mktemp("large")
    content = torch.load(GOLDEN / "ar_tiny.ckpt", weights_only=True)
    for name in ("w1", "w3"):
        content["state_dict"][f"transformer.spatial_blocks.1.feed_forward.{name}.weight"] *= 4000
    torch.save(content, folder / "large.pt")
    checkpoint = read_checkpoint(folder / "large.pt", overrides={"heads": 4})
    export_bundle(checkpoint, folder / "large.bundle", "large")
    return folder / "large.bundle"


def test_values_beyond_half_are_moved_to_islands_and_stay_finite(large, halved, tmp_path):
    manifest = read_manifest(large, BUNDLE)
    assert max(manifest.maxima["inter_step"].values()) > 65504
    moved = write_half(large, manifest, tmp_path).moved_to_float
    assert any("feed_forward" in name or "1/Mul" in name for name in moved["inter_step"])
    assert min(moved["inter_step"].values()) > HALF_LIMIT
    assert not moved["encoder"]
    exact, half, _ = halved(large)
    tokens = exact.sample([1, 2], Sampling(seed=1))
    found = half.score([1, 2], tokens)
    assert all(np.isfinite(part).all() for part in found)
    assert min(score_quality(exact.score([1, 2], tokens), found).top1) >= 0.95


def test_without_islands_the_same_model_is_not_finite(large, tmp_path):
    manifest = read_manifest(large, BUNDLE)
    unaware = replace(manifest, maxima={graph: {} for graph in manifest.maxima})
    half = write_half(large, unaware, tmp_path)
    assert not any(half.moved_to_float.values())
    with Engine(manifest.spec, EmulatedBackend(tmp_path, half), finite=False) as engine:
        tokens = np.zeros((2, 4, 4, 2), np.int64)
        found = engine.score([1, 2], tokens)
    assert not all(np.isfinite(part).all() for part in found)


def test_a_weight_used_on_both_sides_is_stored_in_both_precisions(exported, tmp_path):
    """Moving one reader of the embeddings to float leaves the other half."""
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    manifest = read_manifest(bundle, BUNDLE)
    io = contract.graph_io(manifest.spec, contract.INTER_STEP)
    maxima = dict(manifest.maxima["inter_step"])
    name = next(name for name in maxima if name.startswith("embedding/Gather"))
    half = half_graph(bundle / "inter_step.onnx", io, maxima | {name: 2 * HALF_LIMIT})
    assert name in half.moved
    types = {str(value.name): value.dtype for value, _ in half.weights}
    assert types["transformer.sub_token_embeddings"] == ir.DataType.FLOAT
    assert types["transformer.class_emb.embedding_table.weight"] in (
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT,
    )
