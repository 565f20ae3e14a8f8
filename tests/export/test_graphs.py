"""What the exported graphs are made of: contract, ops, marks, names, bytes."""

import filecmp

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, PORTABLE_OPS, tiny_spec

from m2kit import contract
from m2kit.config import PRESETS, ModelSpec
from m2kit.contract import WEIGHTS_FILE
from m2kit.engines.graph_files import ALIGNMENT_BYTES
from m2kit.export.exporter import export_bundle, write_graphs
from m2kit.manifest import BUNDLE
from m2kit.manifest_file import read_manifest
from m2kit.runtime.reference import read_reference
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes

GRAPHS = contract.graph_names(tiny_spec())
FLOAT_ONLY = {"InstanceNormalization", "Softmax", "ReduceMean", "Sqrt", "Greater", "Less"}


@pytest.fixture(scope="module")
def bundle(exported):
    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]


@pytest.fixture(scope="module")
def graphs(bundle):
    return {name: onnx.load(bundle / f"{name}.onnx", load_external_data=False) for name in GRAPHS}


def shape_of(value):
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_param or dim.dim_value for dim in dims)


def test_inputs_and_outputs_are_those_of_the_contract(graphs, bundle):
    spec = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4}).spec
    for name, model in graphs.items():
        io = contract.graph_io(spec, name)
        for declared, found in ((io.inputs, model.graph.input), (io.outputs, model.graph.output)):
            assert [(t.name, t.shape) for t in declared] == [(v.name, shape_of(v)) for v in found]
        onnx.checker.check_model(str(bundle / f"{name}.onnx"), full_check=True)


def test_graphs_are_portable_opset_18_with_ir_10(graphs):
    for name, model in graphs.items():
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert model.ir_version <= 10
        assert {node.op_type for node in model.graph.node} <= PORTABLE_OPS, name


def test_every_node_carries_its_precision_mark_and_nothing_else(graphs):
    for model in graphs.values():
        for node in model.graph.node:
            marks = {entry.key: entry.value for entry in node.metadata_props}
            assert set(marks) == {contract.PRECISION}
            assert marks[contract.PRECISION] in ("float", "any")
            if node.op_type in FLOAT_ONLY:
                assert marks[contract.PRECISION] == "float", node.name
            assert not node.doc_string


def ancestors(graph, names):
    """Every node that the values depend on."""
    makers = {output: node for node in graph.node for output in node.output}
    found, waiting = {}, list(names)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting += node.input
    return found


@pytest.mark.parametrize("name", ["inter_step", "intra_step"])
def test_everything_from_rope_to_softmax_is_a_float_island(graphs, name):
    graph = graphs[name].graph
    weights = {tensor.name for tensor in graph.initializer if tensor.external_data}
    islands = 0
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        layer = softmax.name.rsplit("/", 1)[0]
        inside = {
            node.name: node
            for node in ancestors(graph, softmax.input).values()
            if node.name.startswith(layer + "/") or node.name.startswith("position/")
        }
        projections = {n for n, node in inside.items() if weights & set(node.input)}
        before = ancestors(graph, [inside[n].output[0] for n in projections])
        for node in inside.values():
            if node.name in before or "norm" in node.name:
                continue
            if node.op_type == "Split" and node.input[0].split("/")[-1].startswith("MatMul"):
                continue  # splits the projection into query-key and value
            assert node.metadata_props[0].value == "float", node.name
            islands += 1
    assert islands > 10


def test_logits_are_float_and_projections_are_not(graphs):
    for name in ("inter_step", "intra_step"):
        graph = graphs[name].graph
        weights = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "MatMul" and weights & set(node.input):
                expected = "float" if node.output[0].startswith("logits.") else "any"
                assert node.metadata_props[0].value == expected, node.name


def test_weights_are_used_by_matmul_as_they_are(graphs):
    for model in graphs.values():
        initializers = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            assert node.op_type != "Gemm"
            if node.op_type == "Transpose":
                assert not initializers & set(node.input), node.name


def test_weights_are_stored_once_aligned_and_under_their_checkpoint_names(graphs, bundle):
    spec = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4}).spec
    names, places = set(), {}
    for model in graphs.values():
        for tensor in model.graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if not external:
                assert np.prod(tensor.dims) <= 512, tensor.name  # small constants only
                continue
            assert external["location"] == WEIGHTS_FILE
            assert int(external["offset"]) % ALIGNMENT_BYTES == 0
            assert places.setdefault(tensor.name, external) == external
            names.add(tensor.name)
    embeddings = {"transformer.pre_emb.weight", "transformer.post_emb.weight"}
    expected = set(expected_shapes(spec)) - embeddings | {"transformer.sub_token_embeddings"}
    assert names == expected
    used = {(p["offset"], int(p["length"])) for p in places.values()}
    assert (bundle / WEIGHTS_FILE).stat().st_size >= sum(length for _, length in used)


def test_identical_tensors_are_stored_once(tmp_path):
    spec = tiny_spec()
    shapes = expected_shapes(spec) | {
        "transformer.sub_token_embeddings": (sum(spec.transformer.vocabularies), 16)
    }
    write_graphs(spec, tmp_path, lambda name: np.ones(shapes[name], np.float32))
    sizes = {4 * int(np.prod(shape)) for name, shape in shapes.items() if "_emb.weight" not in name}
    slots = sum(-(-size // ALIGNMENT_BYTES) for size in sizes)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size <= slots * ALIGNMENT_BYTES


def test_the_same_checkpoint_exported_twice_gives_the_same_bytes(bundle, tmp_path):
    checkpoint = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4})
    again = tmp_path / "elsewhere" / "other.bundle"
    export_bundle(checkpoint, again, "ar_tiny")
    names = sorted(path.name for path in bundle.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    match, mismatch, errors = filecmp.cmpfiles(bundle, again, names, shallow=False)
    assert (sorted(match), mismatch, errors) == (names, [], [])


@pytest.mark.parametrize("name", ["tokenizer-128-v0.1", "video-128", "ar-b"])
def test_published_sizes_make_valid_graphs(name, tmp_path):
    """Structure only: one shared tensor of zeros stands in for every weight of its size."""
    spec: ModelSpec = PRESETS[name].spec
    if spec.transformer:
        shapes = expected_shapes(spec)
        table = (sum(spec.transformer.vocabularies), spec.transformer.width)
        shapes |= {"transformer.sub_token_embeddings": table}
    else:
        shapes = expected_shapes(spec)
    write_graphs(spec, tmp_path, lambda tensor: np.zeros(shapes[tensor], np.float32))
    for graph in contract.graph_names(spec):
        onnx.checker.check_model(str(tmp_path / f"{graph}.onnx"), full_check=True)


def test_the_recorded_maxima_are_those_of_pytorch(exported):
    """Where a value inside the graph is also an output, PyTorch knows its maximum."""
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    maxima = read_manifest(bundle, BUNDLE).maxima
    reference = read_reference(bundle, read_manifest(bundle, BUNDLE).spec)
    assert set(maxima) == set(GRAPHS)
    for graph, name, array in (
        ("encoder", "latent", reference.latents),
        ("decoder", "image", reference.decoded),
        ("lfq", "codes", np.ones(1)),
    ):
        assert maxima[graph][name] == pytest.approx(np.abs(array).max(), rel=1e-3)
    for k in range(2):
        # Every sub-position runs every head, so the graph may see more than the logits used.
        assert (
            maxima["intra_step"][f"logits.{k}"]
            >= np.abs(reference.trajectory.logits[k]).max() * 0.999
        )
    assert not [path.name for path in bundle.iterdir() if path.name.startswith("probe")]


def test_a_probe_takes_each_maximum_at_once(tmp_path):
    """Otherwise every intermediate array of a decoder stays in memory until the end."""
    spec = tiny_spec()
    shapes = expected_shapes(spec) | {
        "transformer.sub_token_embeddings": (sum(spec.transformer.vocabularies), 16)
    }
    writers = write_graphs(spec, tmp_path, lambda name: np.ones(shapes[name], np.float32))
    names = writers[contract.PORTABLE]["decoder"].save_probe(tmp_path / "probe.onnx")
    nodes = onnx.load(tmp_path / "probe.onnx", load_external_data=False).graph.node
    made = {output: index for index, node in enumerate(nodes) for output in node.output}
    taken = {node.input[0]: index for index, node in enumerate(nodes) if node.op_type == "Abs"}
    assert list(taken) == names
    assert max(taken[name] - made[name] for name in names) <= 4  # a Split has two outputs
