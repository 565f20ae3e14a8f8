"""encoder: image (B, 3, *size) -> latent (B, Z, *grid)."""

from __future__ import annotations

from m2kit.config import ModelSpec
from m2kit.contract import ENCODER, IMAGE, LATENT, graph_io
from m2kit.export.graphs.convolutional import conv, group_norm, res_block, silu
from m2kit.export.writer import DeclaredWeights, GraphWriter
from m2kit.families.convolutional import ConvolutionalSpec


def encoder(spec: ModelSpec, weights: DeclaredWeights) -> GraphWriter:
    """The encoder graph."""
    g = GraphWriter(ENCODER, graph_io(spec, ENCODER), weights)
    tokenizer = spec.tokenizer
    assert isinstance(tokenizer, ConvolutionalSpec)
    channels = tokenizer.channels
    x = conv(g, g.inputs[IMAGE], "encoder.conv_in", 3, tokenizer.base_channels, bias=False)
    entering = tokenizer.base_channels
    for level, width in enumerate(channels):
        for block in range(tokenizer.blocks_per_level):
            x = res_block(g, x, f"encoder.down.{level}.block.{block}", entering, width)
            entering = width
        if level < len(channels) - 1:
            strides = tokenizer.level_strides[level]
            x = conv(g, x, f"encoder.down.{level}.downsample", width, width, strides=strides)
    for block in range(tokenizer.blocks_per_level):
        x = res_block(g, x, f"encoder.mid_block.{block}", entering, entering)
    x = silu(g, group_norm(g, x, "encoder.norm_out", entering))
    x = conv(g, x, "encoder.conv_out", entering, tokenizer.code_bits, kernel=1)
    g.output(LATENT, x)
    return g
