"""The transformer's layers as ONNX nodes, in the portable lowering: primitive ops of opset 18.

One position at a time: keys and values of earlier positions come in as inputs of fixed capacity,
the new ones go out ("delta"). Numerics: m2kit.training.models.transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from m2kit.config import TransformerSpec
from m2kit.contract import PRESENT, past_key, past_value
from m2kit.export.writer import GraphWriter
from m2kit.training.models.rope import rotary_table
from m2kit.training.models.transformer import NORM_EPS

_MASKED = -1e30  # in float32, before softmax; the new position itself is never masked


@dataclass(frozen=True, slots=True)
class PositionTables:
    """What layers need of the position: cos and sin (1, d / 2, 1), mask (S) of earlier slots."""

    cos: ir.Value
    sin: ir.Value
    earlier: ir.Value


def linear(g: GraphWriter, x: ir.Value, name: str, size_in: int, size_out: int) -> ir.Value:
    """x (..., in) times a weight stored as (in, out)."""
    return g.op("MatMul", x, g.weight(f"{name}.weight", (size_in, size_out), np.transpose))


def rms_norm(g: GraphWriter, x: ir.Value, name: str, width: int) -> ir.Value:
    """RMSNorm: statistics in float32, then times the weight."""
    with g.float_island():
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.ints([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.constant(NORM_EPS)))
        normed = g.op("Div", x, root)
    return g.op("Mul", normed, g.weight(f"{name}.weight", (width,)))


def rotary_constants(
    g: GraphWriter, spec: TransformerSpec, capacity: int
) -> tuple[ir.Value, ir.Value]:
    """The first `capacity` rows of the cos and sin tables, (capacity, d / 2) each."""
    table = rotary_table(spec.grid, spec.head_size, spec.rope_base)[:capacity].numpy()
    return g.constant(table[..., 0]), g.constant(table[..., 1])


def _position_tables(
    g: GraphWriter, position: ir.Value, spec: TransformerSpec, capacity: int
) -> PositionTables:
    """Rows of the rotary tables at `position`, and which of the `capacity` slots come before it."""
    with g.scope("position"), g.float_island():
        cos, sin = (
            g.op("Gather", table, position, axis=0) for table in rotary_constants(g, spec, capacity)
        )
        return PositionTables(
            cos=g.op("Unsqueeze", cos, g.ints([2])),  # (1, d / 2, 1)
            sin=g.op("Unsqueeze", sin, g.ints([2])),
            earlier=g.op("Less", g.ints(range(capacity)), position),
        )


def _block(
    g: GraphWriter,
    x: ir.Value,
    name: str,
    spec: TransformerSpec,
    tables: PositionTables,
    past: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """One layer on (R, D); returns its output and the new key and value, (R, H, 1, d) each."""
    with g.scope(name):
        normed = rms_norm(g, x, f"{name}.attention_norm", spec.width)
        attended, key, value = _attention(g, normed, f"{name}.attention", spec, tables, past)
        x = g.op("Add", x, attended)
        normed = rms_norm(g, x, f"{name}.ffn_norm", spec.width)
        gate = linear(g, normed, f"{name}.feed_forward.w1", spec.width, spec.ffn_width)
        up = linear(g, normed, f"{name}.feed_forward.w3", spec.width, spec.ffn_width)
        product = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        down = linear(g, product, f"{name}.feed_forward.w2", spec.ffn_width, spec.width)
        return g.op("Add", x, down), key, value


def _attention(
    g: GraphWriter,
    x: ir.Value,
    name: str,
    spec: TransformerSpec,
    tables: PositionTables,
    past: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    heads, size, width = spec.heads, spec.head_size, spec.width
    qkv = linear(g, x, f"{name}.wqkv", width, 3 * width)
    query_key, value = g.ops("Split", qkv, g.ints([2 * width, width]), outputs=2, axis=-1)
    value = g.op("Reshape", value, g.ints([-1, heads, 1, size]))
    keys, values = past
    capacity = int(keys.shape[2])  # type: ignore[index, arg-type]
    with g.float_island():
        turned = _rotate(g, query_key, tables, 2 * heads, size)
        query, key = g.ops("Split", turned, g.ints([heads, heads]), outputs=2, axis=1)
        scaled = g.op("Mul", query, g.constant(size**-0.5))
        scores = g.op("MatMul", scaled, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = g.op("Where", tables.earlier, scores, g.constant(_MASKED))  # (R, H, 1, S)
        own = g.op("ReduceSum", g.op("Mul", scaled, key), g.ints([-1]), keepdims=1)
        weights = g.op("Softmax", g.op("Concat", scores, own, axis=-1), axis=-1)
        on_past, on_own = g.ops("Split", weights, g.ints([capacity, 1]), outputs=2, axis=-1)
    mixed = g.op("Add", g.op("MatMul", on_past, values), g.op("Mul", on_own, value))
    flat = g.op("Reshape", mixed, g.ints([-1, width]))
    return linear(g, flat, f"{name}.wo", width, width), key, value


def _rotate(g: GraphWriter, x: ir.Value, tables: PositionTables, heads: int, size: int) -> ir.Value:
    """Turn the interleaved pairs of (R, heads * d) by the position's angles: (R, heads, 1, d)."""
    pairs = g.op("Reshape", x, g.ints([-1, heads, size // 2, 2]))
    even, odd = g.ops("Split", pairs, g.ints([1, 1]), outputs=2, axis=-1)  # (R, heads, d / 2, 1)
    first = g.op("Sub", g.op("Mul", even, tables.cos), g.op("Mul", odd, tables.sin))
    second = g.op("Add", g.op("Mul", odd, tables.cos), g.op("Mul", even, tables.sin))
    return g.op("Reshape", g.op("Concat", first, second, axis=-1), g.ints([-1, heads, 1, size]))


def layers(
    g: GraphWriter,
    x: ir.Value,
    prefix: str,
    spec: TransformerSpec,
    position: ir.Value,
    capacity: int,
    count: int,
) -> ir.Value:
    """All layers of one transformer on (R, D); also returns their new keys and values as `present`.

    Args:
        g: The graph.
        x: (R, D).
        prefix: Of the layers' parameters.
        spec: The architecture.
        position: (1) int64, the slot of this position.
        capacity: S, slots of the cache.
        count: L, number of layers.
    """
    tables = _position_tables(g, position, spec, capacity)
    rows = []
    for layer in range(count):
        pair = (g.inputs[past_key(layer)], g.inputs[past_value(layer)])
        x, key, value = _block(g, x, f"{prefix}.{layer}", spec, tables, pair)
        rows += [g.op("Unsqueeze", new, g.ints([0])) for new in (key, value)]
    g.output(PRESENT, g.op("Concat", *rows, axis=0))
    return x
