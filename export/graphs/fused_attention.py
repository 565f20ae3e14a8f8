"""The transformer's layers as ONNX Runtime's own fused operators: the onnxruntime lowering.

The same functions as attention.py, over the same weights. GroupQueryAttention turns queries and
keys by our tables (interleaved pairs, a first row of zeros), appends to the cache and attends;
with past and present bound to one buffer the append is in place. Its lengths are computed from
`position` inside the graph, so the inputs are those of the portable lowering.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m2kit.config import TransformerSpec
from m2kit.contract import past_key, past_value, updated
from m2kit.engines.graph_files import MICROSOFT
from m2kit.export.graphs.attention import linear, rotary_constants
from m2kit.export.writer import GraphWriter
from m2kit.training.models.transformer import NORM_EPS


def rms_norm(g: GraphWriter, x: ir.Value, name: str, width: int) -> ir.Value:
    """RMSNorm."""
    weight = g.weight(f"{name}.weight", (width,))
    return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=NORM_EPS)


def layers(
    g: GraphWriter,
    x: ir.Value,
    prefix: str,
    spec: TransformerSpec,
    position: ir.Value,
    capacity: int,
    count: int,
) -> ir.Value:
    """All layers of one transformer on (R, D), as in attention.py; caches go out whole."""
    with g.scope("position"):
        last = g.op("Cast", position, to=ir.DataType.INT32)
        lengths = g.op("Expand", last, g.op("Shape", x, end=1))  # (R): slots before this one
        total = g.op("Add", last, g.constant([1], np.int32))
        x = g.op("Unsqueeze", x, g.ints([1]))  # (R, 1, D)
    tables = rotary_constants(g, spec, capacity)
    normed = rms_norm(g, x, f"{prefix}.0.attention_norm", spec.width)
    for layer in range(count):
        name = f"{prefix}.{layer}"
        with g.scope(name):
            attended = _attention(g, normed, name, spec, layer, (lengths, total, *tables))
            x, normed = _add_and_norm(g, x, attended, f"{name}.ffn_norm", spec.width)
            down = _feed_forward(g, normed, f"{name}.feed_forward", spec)
            if layer + 1 < count:
                following = f"{prefix}.{layer + 1}.attention_norm"
                x, normed = _add_and_norm(g, x, down, following, spec.width)
            else:
                x = g.op("Add", x, down)
    return g.op("Squeeze", x, g.ints([1]))


def _add_and_norm(
    g: GraphWriter, x: ir.Value, y: ir.Value, name: str, width: int
) -> tuple[ir.Value, ir.Value]:
    """x + y, and its RMSNorm."""
    weight = g.weight(f"{name}.weight", (width,))
    normed, _, _, total = g.ops(
        "SkipSimplifiedLayerNormalization", x, y, weight,
        outputs=4, domain=MICROSOFT, epsilon=NORM_EPS,
    )  # fmt: skip
    return total, normed


def _attention(
    g: GraphWriter,
    x: ir.Value,
    name: str,
    spec: TransformerSpec,
    layer: int,
    lengths_and_tables: tuple[ir.Value, ...],
) -> ir.Value:
    qkv = linear(g, x, f"{name}.attention.wqkv", spec.width, 3 * spec.width)
    caches = [g.inputs[past(layer)] for past in (past_key, past_value)]
    attended, *updates = g.ops(
        "GroupQueryAttention", qkv, None, None, *caches, *lengths_and_tables,
        outputs=3, domain=MICROSOFT, num_heads=spec.heads, kv_num_heads=spec.heads,
        do_rotary=1, rotary_interleaved=1,
    )  # fmt: skip
    for cache, update in zip(caches, updates, strict=True):
        g.output(updated(str(cache.name)), update)
    return linear(g, attended, f"{name}.attention.wo", spec.width, spec.width)


def _feed_forward(g: GraphWriter, x: ir.Value, name: str, spec: TransformerSpec) -> ir.Value:
    gate = linear(g, x, f"{name}.w1", spec.width, spec.ffn_width)
    up = linear(g, x, f"{name}.w3", spec.width, spec.ffn_width)
    gate = g.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
    return linear(g, g.op("Mul", gate, up), f"{name}.w2", spec.ffn_width, spec.width)
