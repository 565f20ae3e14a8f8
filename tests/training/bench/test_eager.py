"""The eager baseline computes what the model computes: a benchmark against less would be a lie."""

import numpy as np
import pytest
import torch
from conftest import tiny_spec

from m2kit.runtime.engine import Engine
from m2kit.training.bench.eager import EagerBackend
from m2kit.training.models.model import TorchModel
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend


def model_of(backend, spec):
    """The official layout with the baseline's weights."""
    model = TorchModel(spec, Tokenizer(spec.tokenizer), Transformer(spec.transformer).eval())
    own, transformer = backend._weights, model.transformer
    with torch.no_grad():
        for blocks, layers in (
            (transformer.spatial_blocks, own.inter),
            (transformer.factorized_blocks, own.intra),
        ):
            for block, weights in zip(blocks, layers, strict=True):
                for name, weight in weights.items():
                    part = block.attention if name in ("wqkv", "wo") else block.feed_forward
                    getattr(part, name).weight.copy_(weight.t())
        for head, weight in zip(transformer.head, own.heads, strict=True):
            head.weight.copy_(weight.t())
        for name, table in zip(transformer.names, own.tables, strict=True):
            getattr(transformer, name).weight.copy_(table)
        transformer.class_emb.embedding_table.weight.copy_(own.classes)
    return model


@pytest.mark.parametrize("bits", [(8,), (3, 5), (2, 3, 3)])
@pytest.mark.parametrize("official", [False, True])
def test_the_baseline_computes_the_models_logits(bits, official):
    spec = tiny_spec(bits=bits)
    backend = EagerBackend(spec, threads=torch.get_num_threads(), official=official)
    size = (2, *spec.transformer.grid)
    tokens = np.stack(
        [np.random.default_rng(k).integers(0, 2**b, size) for k, b in enumerate(bits)], axis=-1
    )
    found, expected = (
        Engine(spec, one).score([0, 1], tokens)
        for one in (backend, TorchBackend(model_of(backend, spec)))
    )
    for own, right in zip(found, expected, strict=True):
        assert np.abs(right).max() > 0.01
        np.testing.assert_allclose(own, right, atol=1e-5)
