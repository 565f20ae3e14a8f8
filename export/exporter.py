"""Checkpoint -> bundle: write the graphs and the weights, then prove that they compute the same.

A bundle exists only if every graph agrees with PyTorch and a whole guided, greedy trajectory
decoded by ONNX Runtime through the cached steps is what PyTorch, teacher-forced, would have chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import m2kit
from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.errors import require
from m2kit.export.graphs.inter_step import EMBEDDINGS, inter_step
from m2kit.export.graphs.intra_step import intra_step
from m2kit.export.maxima import ProbeBackend
from m2kit.export.reference import make_inputs, score_in_torch
from m2kit.export.writer import Array, DeclaredWeights, GraphWriter, Load
from m2kit.families.family import FAMILIES
from m2kit.folders import new_folder
from m2kit.host import release_freed_memory
from m2kit.manifest import (
    BUNDLE,
    GraphEntry,
    Manifest,
    files_table,
    manifest_name,
    write_manifest,
)
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.progress import Begin, silent
from m2kit.references import resolve
from m2kit.runtime.backend import CPU
from m2kit.runtime.engine import Engine
from m2kit.runtime.parity import prove
from m2kit.runtime.reference import Reference
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import Checkpoint, model_from_checkpoint
from m2kit.training.models.transformer import embedding_names

STEP_GRAPHS: dict[str, Callable[[ModelSpec, DeclaredWeights, str], GraphWriter]] = {
    contract.INTER_STEP: inter_step,
    contract.INTRA_STEP: intra_step,
}
Writers = dict[str, dict[str, GraphWriter]]  # lowering -> graph -> writer


def export_bundle(
    checkpoint: Checkpoint, destination: Path, name: str, begin: Begin = silent
) -> Manifest:
    """Write the bundle of a checkpoint.

    Args:
        checkpoint: What to export.
        destination: The bundle folder; appears only when complete and in parity.
        name: The model's name, kept in the bundle.
        begin: Called with the name of each stage as it begins.

    Raises:
        ParityError: A graph does not agree with PyTorch.
        FolderError: The destination cannot be written.
        BackendError: onnxruntime, which the parity check needs, is not installed.
    """
    require("onnxruntime", extra="cpu", what="export's parity check")
    spec = checkpoint.spec
    with new_folder(destination, manifest_name(BUNDLE)) as folder:
        begin("writing graphs and weights")
        writers = write_graphs(spec, folder, _weights(checkpoint))
        manifest = Manifest(
            kind=BUNDLE,
            name=name,
            spec=spec,
            precision=Precision.FLOAT32,
            sampling=checkpoint.sampling,
            lowerings={
                lowering: _entries(spec, lowering, graphs) for lowering, graphs in writers.items()
            },
            files={},
            source=checkpoint.source,
            versions=_versions(),
            parity=ParityReport(),
            training=checkpoint.training,
        )
        portable = writers[contract.PORTABLE]
        reference, maxima = _reference(checkpoint, folder, manifest, portable, begin)
        reference.write(folder)
        release_freed_memory()
        report = prove(folder, manifest, begin, provider=CPU, reference=reference)
        report.require("the exported model")
        manifest = replace(manifest, files=files_table(folder), parity=report, maxima=maxima)
        write_manifest(folder, manifest)
    return manifest


def _reference(
    checkpoint: Checkpoint,
    folder: Path,
    manifest: Manifest,
    writers: Mapping[str, GraphWriter],
    begin: Begin,
) -> tuple[Reference, dict[str, dict[str, float]]]:
    """The reference, and the maxima of every value; the weights are in memory once at a time."""
    spec, inputs = checkpoint.spec, make_inputs(checkpoint.spec)
    advance = begin("decoding a trajectory with ONNX Runtime", spec.positions)
    with ProbeBackend(folder, manifest, writers) as probe:
        engine = Engine(spec, probe)
        tokens = engine.encode(inputs.images)
        if spec.transformer is not None:
            sampling = Sampling(guidance=tuple(inputs.guidance.tolist()), greedy=True)
            for drawn in engine.generate(inputs.class_ids, sampling):
                tokens = drawn.tokens
                advance(1)
        engine.decode(tokens)
    begin("scoring it with PyTorch")
    return score_in_torch(model_from_checkpoint(checkpoint), inputs, tokens), probe.maxima()


def write_graphs(spec: ModelSpec, folder: Path, load: Load) -> Writers:
    """Write every graph of a spec, in every lowering, and the weights file that all share."""
    weights = DeclaredWeights()
    writers: Writers = {
        lowering: {graph: _writer(spec, weights, graph, lowering) for graph in graphs}
        for lowering, graphs in contract.lowerings(spec).items()
    }
    weights.write(folder, load)
    for lowering, graphs in writers.items():
        for graph, writer in graphs.items():
            writer.save(folder / contract.onnx_file(graph, lowering))
    return writers


def _writer(spec: ModelSpec, weights: DeclaredWeights, graph: str, lowering: str) -> GraphWriter:
    if graph in STEP_GRAPHS:
        return STEP_GRAPHS[graph](spec, weights, lowering)
    writers = resolve(FAMILIES[spec.tokenizer.family].graphs)
    writer: GraphWriter = writers[graph](spec, weights)
    return writer


def _entries(
    spec: ModelSpec, lowering: str, writers: Mapping[str, GraphWriter]
) -> dict[str, GraphEntry]:
    """A lowering's entries in bundle.json."""
    entries = {}
    for graph, writer in writers.items():
        io = contract.graph_io(spec, graph, lowering)
        file = contract.onnx_file(graph, lowering)
        entries[graph] = GraphEntry(file, "float32", writer.op_counts(), io.inputs, io.outputs)
    return entries


def _weights(checkpoint: Checkpoint) -> Load:
    """Loads one tensor of the checkpoint as float32; the embedding tables as the one they form."""
    tensors = checkpoint.tensors()

    def load(name: str) -> Array:
        if name == EMBEDDINGS:
            names = embedding_names(checkpoint.spec.sub_tokens)
            return np.concatenate([load(f"transformer.{part}.weight") for part in names])
        array: Array = tensors[name].float().numpy()
        return array

    return load


def _versions() -> dict[str, str]:
    names = ("torch", "onnx_ir", "onnxruntime", "numpy")
    modules = {name: require(name, extra="export,cpu", what="export") for name in names}
    return {"m2kit": m2kit.__version__} | {n: str(m.__version__) for n, m in modules.items()}
