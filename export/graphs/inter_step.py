"""inter_step: class or previous token of one position -> its context, through the cached layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.contract import (
    CLASS_ID,
    HIDDEN,
    INTER_STEP,
    ONNXRUNTIME,
    PORTABLE,
    POSITION,
    TOKEN,
    graph_io,
)
from m2kit.export.graphs import attention, fused_attention
from m2kit.export.writer import DeclaredWeights, GraphWriter
from m2kit.training.models.transformer import embedding_names

LOWERINGS = {PORTABLE: attention, ONNXRUNTIME: fused_attention}  # how layers are written
EMBEDDINGS = "transformer.sub_token_embeddings"  # all K tables, one below the other


def sub_token_embeddings(g: GraphWriter, spec: TransformerSpec) -> ir.Value:
    """The one table (sum V_k, D) of all sub-token embeddings; row = id + offset of k."""
    names = (f"transformer.{name}.weight" for name in embedding_names(spec.sub_tokens))
    return g.weight(EMBEDDINGS, (sum(spec.vocabularies), spec.width), parts=tuple(names))


def sub_token_offsets(spec: TransformerSpec) -> list[int]:
    """First row of each sub-token in the embedding table."""
    return [sum(spec.vocabularies[:k]) for k in range(spec.sub_tokens)]


def inter_step(spec: ModelSpec, weights: DeclaredWeights, lowering: str = PORTABLE) -> GraphWriter:
    """The inter step graph."""
    transformer = spec.transformer
    assert transformer is not None
    g = GraphWriter(INTER_STEP, graph_io(spec, INTER_STEP, lowering), weights)
    class_id, token, position = (g.inputs[name] for name in (CLASS_ID, TOKEN, POSITION))
    name = "transformer.class_emb.embedding_table.weight"
    classes = g.weight(name, (transformer.classes + 1, transformer.width))
    with g.scope("embedding"):
        rows = g.op("Add", token, g.constant(sub_token_offsets(transformer), np.int64))
        parts = g.op("Gather", sub_token_embeddings(g, transformer), rows, axis=0)  # (R, K, D)
        embedded = g.op("ReduceSum", parts, g.ints([1]), keepdims=0)
        first = g.op("Equal", position, g.ints([0]))
        x = g.op("Where", first, g.op("Gather", classes, class_id, axis=0), embedded)
    x = LOWERINGS[lowering].layers(
        g,
        x,
        "transformer.spatial_blocks",
        transformer,
        position,
        transformer.positions,
        transformer.inter_layers,
    )
    g.output(HIDDEN, x)
    return g
