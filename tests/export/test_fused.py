"""The onnxruntime lowering computes what the portable one does, and updates its cache in place."""

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, tiny_spec

from m2kit import contract
from m2kit.export.exporter import _entries, write_graphs
from m2kit.manifest import BUNDLE, Manifest, Source
from m2kit.manifest_file import read_manifest
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.runtime.backend import Opening
from m2kit.runtime.engine import Engine
from m2kit.runtime.ort.backend import OnnxRuntimeBackend
from m2kit.training.models.model import expected_shapes


def manifest_of(spec, writers):
    entries = {lowering: _entries(lowering, own) for lowering, own in writers.items()}
    source = Source("0" * 64, 0, (), "stored", (), {})
    precision, parity = Precision.FLOAT32, ParityReport()
    return Manifest(BUNDLE, "m", spec, precision, None, entries, {}, source, {}, parity)


@pytest.fixture
def both(tmp_path):
    """Opens random weights of a spec in both lowerings: (portable, fused)."""

    def make(**transformer):
        spec = tiny_spec(width=64, heads=2, ffn_width=48, **transformer)
        rng = np.random.default_rng(3)
        shapes = expected_shapes(spec)

        def load(name):
            return rng.standard_normal(shapes[name]).astype(np.float32) * 0.2

        manifest = manifest_of(spec, write_graphs(spec, tmp_path, load))
        return [
            Engine(spec, OnnxRuntimeBackend(tmp_path, manifest, Opening(lowering=lowering)))
            for lowering in (contract.PORTABLE, contract.ONNXRUNTIME)
        ]

    return make


@pytest.mark.parametrize("bits", [(5,), (2, 3), (2, 3, 1)])
def test_both_lowerings_give_the_same_logits_at_every_position(both, bits):
    portable, fused = both(bits=bits, grid=(3, 4), intra_layers=2)
    assert fused.backend.active()["fused"] == ["inter_step", "intra_step"]
    assert not portable.backend.active()["fused"]
    tokens = np.stack([np.random.default_rng(1).integers(0, 2**b, (5, 3, 4)) for b in bits], -1)
    classes = [0, 1, 2, 3, 4]
    expected = portable.score(classes, tokens)
    for own, right in zip(fused.score(classes, tokens), expected, strict=True):
        assert np.abs(right).max() > 0.1
        np.testing.assert_allclose(own, right, atol=3e-6)


def test_a_second_generation_does_not_see_the_cache_of_the_first(both):
    portable, fused = both()
    steps = [engine.backend.open_steps(1) for engine in (portable, fused)]
    for sequence in ((1, 2), (2, 0)):
        for step in (pair.inter for pair in steps):
            step.reset()
            step.inputs["class_id"][:] = sequence[0]
            for position in range(3):
                step.inputs["token"][:] = sequence[1]
                step.run(position)
                step.commit(position)
        hidden = [pair.inter.outputs["hidden"] for pair in steps]
        np.testing.assert_allclose(hidden[1], hidden[0], atol=1e-6)


def test_a_run_writes_its_own_row_of_the_cache_and_no_other(both):
    _, fused = both()
    step = fused.backend.open_steps(2).inter
    before = step.cache.copy()
    step.inputs["class_id"][:] = 1
    step.run(0)
    changed = (step.cache != before).any(axis=(0, 1, 2, 4))
    assert changed.tolist() == [True, *[False] * 5]
    assert not step.cache[0::2, :, :, 0].any()  # the class token's keys are turned to zero
    assert step.cache[1::2, :, :, 0].any()


def test_both_lowerings_read_the_same_weights(exported):
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    for graph in contract.STEP_GRAPHS:
        places = []
        for lowering in (contract.PORTABLE, contract.ONNXRUNTIME):
            path = bundle / contract.onnx_file(graph, lowering)
            model = onnx.load(path, load_external_data=False)
            external = [t for t in model.graph.initializer if t.external_data]
            places.append({t.name: [(e.key, e.value) for e in t.external_data] for t in external})
            inputs = [value.name for value in model.graph.input]
            spec = read_manifest(bundle, BUNDLE).spec
            assert inputs == [t.name for t in contract.graph_io(spec, graph, lowering).inputs]
        assert places[0] == places[1]


def test_head_sizes_that_the_fused_attention_does_not_take_have_no_such_lowering():
    assert set(contract.lowerings(tiny_spec())) == {"portable"}  # d = 8
    assert set(contract.lowerings(tiny_spec(width=32))) == {"portable", "onnxruntime"}
    assert set(contract.lowerings(tiny_spec(width=48))) == {"portable"}  # d = 24
