"""ids -> codes -> ids for the whole published codebook: numpy, PyTorch and the lfq graph."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import tiny_spec

from m2kit import contract
from m2kit.export.graphs.lfq import lfq as lfq_graph
from m2kit.export.writer import DeclaredWeights
from m2kit.families.sign_bits import codes_from_tokens, tokens_from_codes
from m2kit.training.models import lfq

CODES = 2**18


@pytest.mark.parametrize("bits", [(18,), (6, 12), (9, 9), (5, 6, 7), (3, 5, 4, 6)])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_every_id_of_the_published_codebook_survives(tmp_path, bits, order):
    spec = tiny_spec(bits=bits)
    spec = replace(spec, tokenizer=replace(spec.tokenizer, bit_order=order))
    flat = np.arange(CODES).reshape(1, 512, 512)
    starts = np.cumsum((0, *bits[:-1]))
    tokens = np.stack([flat >> s & (2**b - 1) for s, b in zip(starts, bits, strict=True)], axis=-1)
    codes = codes_from_tokens(tokens, bits, order)
    assert len(np.unique(codes.reshape(18, -1).T.astype(np.int8), axis=0)) == CODES
    np.testing.assert_array_equal(tokens_from_codes(codes, bits, order), tokens)

    latent = torch.from_numpy(codes * 0.37)
    quantized = lfq.quantize(latent)
    np.testing.assert_array_equal(quantized, codes)
    np.testing.assert_array_equal(lfq.tokens_from_codes(quantized, bits, order), tokens)

    weights = DeclaredWeights()
    graph = lfq_graph(spec, weights)
    weights.write(tmp_path, lambda name: pytest.fail("LFQ has no weights"))
    graph.save(tmp_path / "lfq.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "lfq.onnx")
    found = session.run([contract.CODES, contract.TOKENS], {contract.LATENT: latent.numpy()})
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1], tokens)
