"""lfq: latent (B, Z, h, w) -> codes (B, Z, h, w) in {-1, +1} and tokens (B, h, w, K) int64.

The index is a sum of integer products, so it is exact for any number of bits, and needs no bit
operators, which TensorRT does not have.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m2kit.config import ModelSpec
from m2kit.contract import CODES, LATENT, LFQ, TOKENS, graph_io
from m2kit.export.writer import GraphWriter, WeightFile
from m2kit.tokens import bit_weights


def lfq(spec: ModelSpec, weights: WeightFile) -> GraphWriter:
    """The LFQ graph."""
    g = GraphWriter(LFQ, graph_io(spec, LFQ), weights)
    with g.float_island():
        positive = g.op("Greater", g.inputs[LATENT], g.constant(0.0))
        codes = g.op("Where", positive, g.constant(1.0), g.constant(-1.0))
        values = np.reshape(bit_weights(spec.bits, spec.tokenizer.bit_order), (-1, 1, 1))
        bits = g.op("Cast", positive, to=ir.DataType.INT64)
        valued = g.op("Mul", bits, g.constant(values, np.int64))
        parts = [valued]
        if len(spec.bits) > 1:
            sizes = g.ints(spec.bits)
            parts = list(g.ops("Split", valued, sizes, outputs=len(spec.bits), axis=1))
        sums = [g.op("ReduceSum", part, g.ints([1]), keepdims=1) for part in parts]
        joined = g.op("Concat", *sums, axis=1)  # (B, K, h, w)
        tokens = g.op("Transpose", joined, perm=[0, 2, 3, 1])
    g.output(CODES, codes)
    g.output(TOKENS, tokens)
    return g
