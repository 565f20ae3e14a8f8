"""The tokenizer's layers as ONNX nodes (numerics: m2kit.training.models.tokenizer), of images and
of videos: a graph has as many axes as what it takes.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from m2kit.export.writer import GraphWriter
from m2kit.families.convolutional import GROUPS
from m2kit.training.models.tokenizer import NORM_EPS

_END = 2**31 - 1  # past any axis


def conv(
    g: GraphWriter,
    x: ir.Value,
    name: str,
    channels_in: int,
    channels_out: int,
    *,
    kernel: int = 3,
    strides: tuple[int, ...] | None = None,
    bias: bool = True,
) -> ir.Value:
    """Convolution with zeros around, along time all of them in front; `name` is the parameter
    prefix, and no strides are ones."""
    kernels, before = [kernel] * axes_of(g), [kernel // 2] * axes_of(g)
    after = list(before)
    if len(before) == 3:
        name = f"{name}.conv_1"
        before[0], after[0] = kernel - 1, 0
    inputs = [x, g.weight(f"{name}.weight", (channels_out, channels_in, *kernels))]
    if bias:
        inputs.append(g.weight(f"{name}.bias", (channels_out,)))
    steps = strides or [1] * len(kernels)
    return g.op("Conv", *inputs, kernel_shape=kernels, strides=steps, pads=before + after)


def axes_of(g: GraphWriter) -> int:
    """Axes of the pictures, or of their latent grid, that a graph takes: 2 or 3."""
    (picture,) = g.inputs.values()
    assert picture.shape is not None
    return len(picture.shape) - 2


def upsample(
    g: GraphWriter, x: ir.Value, name: str, channels: int, strides: tuple[int, ...]
) -> ir.Value:
    """Convolution to more channels, and depth-to-space; of doubled time the second frame goes."""
    x = conv(g, x, name, channels, math.prod(strides) * channels)
    if len(strides) == 2:
        return g.op("DepthToSpace", x, blocksize=2, mode="DCR")
    with g.scope(name):
        size = g.op("Gather", g.op("Shape", x), g.ints([2, 3, 4]))
        shape = g.op("Concat", g.ints([0, *strides, channels]), size, axis=0)
        blocks = g.op("Reshape", x, shape)  # (B, 2, 2, 2, C, t, h, w): no more axes in TensorRT
        x = g.op("Transpose", blocks, perm=[0, 4, 5, 1, 6, 2, 7, 3])
        shape = g.op("Concat", g.ints([0, 0]), g.op("Mul", size, g.ints(strides)), axis=0)
        x = g.op("Reshape", x, shape)
        if strides[0] == 1:
            return x
        parts = (
            g.op("Slice", x, g.ints([start]), g.ints([end]), g.ints([2]))
            for start, end in ((0, 1), (2, _END))
        )
        return g.op("Concat", *parts, axis=2)


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
    shape = (channels, *[1] * axes_of(g))
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
