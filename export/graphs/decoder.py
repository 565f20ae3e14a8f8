"""decoder: codes (B, Z, *grid) in {-1, +1} -> image (B, 3, *size)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m2kit.config import ModelSpec
from m2kit.contract import CODES, DECODER, IMAGE, graph_io
from m2kit.export.graphs.convolutional import (
    axes_of,
    conv,
    group_norm,
    plain_group_norm,
    res_block,
    silu,
    upsample,
)
from m2kit.export.writer import DeclaredWeights, GraphWriter
from m2kit.families.convolutional import ConvolutionalSpec
from m2kit.training.models.tokenizer import NORM_EPS


def decoder(spec: ModelSpec, weights: DeclaredWeights) -> GraphWriter:
    """The decoder graph."""
    g = GraphWriter(DECODER, graph_io(spec, DECODER), weights)
    tokenizer = spec.tokenizer
    assert isinstance(tokenizer, ConvolutionalSpec)
    channels, code_bits = tokenizer.channels, tokenizer.code_bits
    codes = g.inputs[CODES]
    style = _code_statistics(g, codes) if tokenizer.adaptive_norm else None
    entering = channels[-1]
    x = conv(g, codes, "decoder.conv_in", code_bits, entering)
    for block in range(tokenizer.blocks_per_level):
        x = res_block(g, x, f"decoder.mid_block.{block}", entering, entering)
    for level in reversed(range(len(channels))):
        width = channels[level]
        if style is not None:
            x = _adaptive_norm(g, x, style, f"decoder.adaptive.{level}", entering, code_bits)
        for block in range(tokenizer.blocks_per_level):
            x = res_block(g, x, f"decoder.up.{level}.block.{block}", entering, width)
            entering = width
        if level > 0:
            strides = tokenizer.level_strides[level - 1]
            x = upsample(g, x, f"decoder.up.{level}.upsample.conv1", width, strides)
    x = silu(g, group_norm(g, x, "decoder.norm_out", entering))
    g.output(IMAGE, conv(g, x, "decoder.conv_out", entering, 3))
    return g


def _axes(g: GraphWriter) -> ir.Value:
    """The dimensions of the latent grid."""
    return g.ints(range(2, 2 + axes_of(g)))


def _code_statistics(g: GraphWriter, codes: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Standard deviation (unbiased, eps inside the root) and mean of the codes, each (B, Z)."""
    with g.scope("style"), g.float_island():
        axes = _axes(g)
        mean = g.op("ReduceMean", codes, axes, keepdims=1)
        centred = g.op("Sub", codes, mean)
        total = g.op("ReduceSum", g.op("Mul", centred, centred), axes, keepdims=0)
        sides = g.op("Gather", g.op("Shape", codes), axes)
        count = g.op("Cast", g.op("ReduceProd", sides, keepdims=0), to=ir.DataType.FLOAT)
        variance = g.op("Div", total, g.op("Sub", count, g.constant(1.0)))
        deviation = g.op("Sqrt", g.op("Add", variance, g.constant(NORM_EPS)))
        return deviation, g.op("Squeeze", mean, axes)


def _adaptive_norm(
    g: GraphWriter,
    x: ir.Value,
    style: tuple[ir.Value, ir.Value],
    name: str,
    channels: int,
    code_bits: int,
) -> ir.Value:
    with g.scope(name):
        parts = []
        for statistic, part in zip(style, ("gamma", "beta"), strict=True):
            weight = g.weight(f"{name}.{part}.weight", (code_bits, channels), np.transpose)
            bias = g.weight(f"{name}.{part}.bias", (channels,))
            linear = g.op("Add", g.op("MatMul", statistic, weight), bias)
            parts.append(g.op("Unsqueeze", linear, _axes(g)))
        scale, shift = parts
        return g.op("Add", g.op("Mul", plain_group_norm(g, x), scale), shift)
