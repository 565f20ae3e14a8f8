"""intra_step: context or previous sub-token -> logits of every head, through the cached layers."""

from __future__ import annotations

import numpy as np

from m2kit.config import ModelSpec
from m2kit.contract import (
    HIDDEN,
    INTRA_STEP,
    PORTABLE,
    SUB_POSITION,
    SUB_TOKEN,
    graph_io,
    logits,
)
from m2kit.export.graphs.attention import linear
from m2kit.export.graphs.inter_step import LOWERINGS, sub_token_embeddings, sub_token_offsets
from m2kit.export.writer import DeclaredWeights, GraphWriter


def intra_step(spec: ModelSpec, weights: DeclaredWeights, lowering: str = PORTABLE) -> GraphWriter:
    """The intra step graph."""
    transformer = spec.transformer
    assert transformer is not None
    g = GraphWriter(INTRA_STEP, graph_io(spec, INTRA_STEP, lowering), weights)
    hidden, sub_token, sub_position = (g.inputs[n] for n in (HIDDEN, SUB_TOKEN, SUB_POSITION))
    with g.scope("embedding"):
        # Sub-position k is fed sub-token k - 1; row 0 stands in where nothing precedes.
        offsets = [0, *sub_token_offsets(transformer)[:-1]]
        offset = g.op("Gather", g.constant(offsets, np.int64), sub_position, axis=0)
        rows = g.op("Add", sub_token, offset)
        embedded = g.op("Gather", sub_token_embeddings(g, transformer), rows, axis=0)
        first = g.op("Equal", sub_position, g.ints([0]))
        x = g.op("Where", first, hidden, embedded)
    x = LOWERINGS[lowering].layers(
        g,
        x,
        "transformer.factorized_blocks",
        transformer,
        sub_position,
        transformer.sub_tokens,
        transformer.intra_layers,
    )
    x = LOWERINGS[lowering].rms_norm(g, x, "transformer.norm", transformer.width)
    for k, size in enumerate(transformer.vocabularies):
        with g.float_island():
            g.output(logits(k), linear(g, x, f"transformer.head.{k}", transformer.width, size))
    return g
