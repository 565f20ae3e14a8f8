"""The tokenizer's layers as ONNX nodes (numerics: m2kit.training.models.tokenizer)."""

from __future__ import annotations

import onnx_ir as ir

from m2kit.export.writer import GraphWriter
from m2kit.families.image import GROUPS
from m2kit.training.models.tokenizer import NORM_EPS


def conv(
    g: GraphWriter,
    x: ir.Value,
    name: str,
    channels_in: int,
    channels_out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = True,
) -> ir.Value:
    """Convolution with symmetric padding; `name` is the parameter prefix."""
    inputs = [x, g.weight(f"{name}.weight", (channels_out, channels_in, kernel, kernel))]
    if bias:
        inputs.append(g.weight(f"{name}.bias", (channels_out,)))
    return g.op(
        "Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4
    )


def silu(g: GraphWriter, x: ir.Value) -> ir.Value:
    """x * sigmoid(x)."""
    return g.op("Mul", x, g.op("Sigmoid", x))


def plain_group_norm(g: GraphWriter, x: ir.Value) -> ir.Value:
    """GroupNorm without scale and shift, as InstanceNormalization over (B, 32, -1)."""
    with g.float_island():
        shape = g.op("Shape", x)
        grouped = g.op("Reshape", x, g.ints([0, GROUPS, -1]))
        ones, zeros = g.constant([1.0] * GROUPS), g.constant([0.0] * GROUPS)
        normed = g.op("InstanceNormalization", grouped, ones, zeros, epsilon=NORM_EPS)
        return g.op("Reshape", normed, shape)


def group_norm(g: GraphWriter, x: ir.Value, name: str, channels: int) -> ir.Value:
    """GroupNorm with scale and shift per channel."""
    shape = (channels, 1, 1)
    weight = g.weight(f"{name}.weight", shape, lambda array: array.reshape(shape))
    bias = g.weight(f"{name}.bias", shape, lambda array: array.reshape(shape))
    return g.op("Add", g.op("Mul", plain_group_norm(g, x), weight), bias)


def res_block(
    g: GraphWriter, x: ir.Value, name: str, channels_in: int, channels_out: int
) -> ir.Value:
    """norm, swish, conv, norm, swish, conv, plus the (projected) input."""
    with g.scope(name):
        y = silu(g, group_norm(g, x, f"{name}.norm1", channels_in))
        y = conv(g, y, f"{name}.conv1", channels_in, channels_out, bias=False)
        y = silu(g, group_norm(g, y, f"{name}.norm2", channels_out))
        y = conv(g, y, f"{name}.conv2", channels_out, channels_out, bias=False)
        if channels_in != channels_out:
            shortcut = f"{name}.nin_shortcut"
            x = conv(g, x, shortcut, channels_in, channels_out, kernel=1, bias=False)
        return g.op("Add", y, x)
