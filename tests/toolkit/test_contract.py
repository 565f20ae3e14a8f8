import pytest
from conftest import tiny_spec

from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.errors import SpecError


def test_step_graphs_have_the_shapes_of_the_design():
    spec = tiny_spec()
    inter = contract.graph_io(spec, contract.INTER_STEP)
    names = [tensor.name for tensor in inter.inputs]
    assert names == [
        "class_id",
        "token",
        "position",
        "past.0.key",
        "past.0.value",
        "past.1.key",
        "past.1.value",
    ]
    assert inter.inputs[3].shape == ("R", 2, 6, 8)  # H, S = N, d
    assert [(t.name, t.shape) for t in inter.outputs] == [
        ("hidden", ("R", 16)),
        ("present", (4, "R", 2, 1, 8)),
    ]
    intra = contract.graph_io(spec, contract.INTRA_STEP)
    assert intra.inputs[3].shape == ("R", 2, 2, 8)  # S = K
    assert [(t.name, t.shape) for t in intra.outputs] == [
        ("logits.0", ("R", 4)),
        ("logits.1", ("R", 8)),
        ("present", (2, "R", 2, 1, 8)),
    ]


def test_a_tokenizer_alone_has_three_graphs_and_one_sub_token():
    spec = ModelSpec(tiny_spec().tokenizer, None)
    assert contract.graph_names(spec) == ("encoder", "lfq", "decoder")
    assert contract.graph_io(spec, "lfq").outputs[1].shape == ("B", "h", "w", 1)
    with pytest.raises(SpecError, match="inter_step"):
        contract.graph_io(spec, contract.INTER_STEP)
