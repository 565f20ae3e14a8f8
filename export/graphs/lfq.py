"""lfq: latent (B, Z, *grid) -> codes (B, Z, *grid) in {-1, +1} and tokens (B, *grid, K) int64.

The index is a sum of integer products, so it is exact for any number of bits, and needs no bit
operators, which TensorRT does not have.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m2kit.config import ModelSpec
from m2kit.contract import CODES, LATENT, TOKENS, graph_io
from m2kit.export.writer import DeclaredWeights, GraphWriter
from m2kit.families.sign_bits import bit_weights, bits_of


def lfq(spec: ModelSpec, weights: DeclaredWeights) -> GraphWriter:
    """The LFQ graph."""
    name, bits = spec.tokenizer.quantizer, bits_of(spec.vocabularies)
    axes = len(spec.tokenizer.axes)
    g = GraphWriter(name, graph_io(spec, name), weights)
    with g.float_island():
        positive = g.op("Greater", g.inputs[LATENT], g.constant(0.0))
        codes = g.op("Where", positive, g.constant(1.0), g.constant(-1.0))
        values = np.reshape(bit_weights(bits, spec.tokenizer.bit_order), (-1, *[1] * axes))
        ones = g.op("Cast", positive, to=ir.DataType.INT64)
        valued = g.op("Mul", ones, g.constant(values, np.int64))
        parts = [valued]
        if len(bits) > 1:
            parts = list(g.ops("Split", valued, g.ints(bits), outputs=len(bits), axis=1))
        sums = [g.op("ReduceSum", part, g.ints([1]), keepdims=1) for part in parts]
        joined = g.op("Concat", *sums, axis=1)  # (B, K, *grid)
        tokens = g.op("Transpose", joined, perm=[0, *range(2, axes + 2), 1])
    g.output(CODES, codes)
    g.output(TOKENS, tokens)
    return g
