"""Checkpoint -> bundle: write the graphs and the weights, then prove that they compute the same.

A bundle exists only if every graph agrees with PyTorch and a whole guided, greedy trajectory
decoded by ONNX Runtime through the cached steps is what PyTorch, teacher-forced, would have chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import m2kit
from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.errors import require
from m2kit.export.graphs.inter_step import inter_step
from m2kit.export.graphs.intra_step import intra_step
from m2kit.export.reference import check_size, make_reference
from m2kit.export.writer import DeclaredWeights, GraphWriter, Load
from m2kit.families.family import FAMILIES
from m2kit.host import release_freed_memory
from m2kit.manifest import BUNDLE, GraphEntry, Manifest
from m2kit.manifest_file import files_table, new_model_folder, write_manifest
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.progress import Begin, silent
from m2kit.references import resolve
from m2kit.runtime.backend import CPU
from m2kit.runtime.ort.library import load_onnxruntime
from m2kit.runtime.parity import prove
from m2kit.training.checkpoints.reading import Checkpoint

STEP_GRAPHS: dict[str, Callable[[ModelSpec, DeclaredWeights, str], GraphWriter]] = {
    contract.INTER_STEP: inter_step,
    contract.INTRA_STEP: intra_step,
}
Writers = dict[str, dict[str, GraphWriter]]  # lowering -> graph -> writer


def export_bundle(
    checkpoint: Checkpoint,
    destination: Path,
    name: str,
    begin: Begin = silent,
    *,
    size: tuple[int, ...] | None = None,
) -> Manifest:
    """Write the bundle of a checkpoint.

    Args:
        checkpoint: What to export.
        destination: The bundle folder; appears only when complete and in parity.
        name: The model's name, kept in the bundle.
        begin: Called with the name of each stage as it begins.
        size: Pixels along each axis of the pictures on which a tokenizer alone is compared with
            PyTorch, here and wherever the bundle goes; None is a small size.

    Raises:
        InputError: A size that the model does not take, or of a model that has its own.
        ParityError: A graph does not agree with PyTorch.
        FolderError: The destination cannot be written.
        BackendError: onnxruntime, which the parity check needs, is not installed.
    """
    load_onnxruntime("export's parity check")
    spec = checkpoint.spec
    if size is not None:
        check_size(spec, size)
    with new_model_folder(destination, BUNDLE) as folder:
        begin("writing graphs and weights")
        writers = write_graphs(spec, folder, checkpoint.loader())
        manifest = Manifest(
            kind=BUNDLE,
            name=name,
            spec=spec,
            precision=Precision.FLOAT32,
            sampling=checkpoint.sampling,
            lowerings={lowering: _entries(lowering, own) for lowering, own in writers.items()},
            files={},
            source=checkpoint.source,
            versions=_versions(),
            parity=ParityReport(),
            training=checkpoint.training,
        )
        portable = writers[contract.PORTABLE]
        reference, maxima = make_reference(checkpoint, folder, manifest, portable, begin, size)
        reference.write(folder)
        release_freed_memory()
        report = prove(folder, manifest, begin, provider=CPU, reference=reference)
        report.require("the exported model")
        manifest = replace(manifest, files=files_table(folder), parity=report, maxima=maxima)
        write_manifest(folder, manifest)
    return manifest


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
    writer: GraphWriter = resolve(FAMILIES[spec.tokenizer.family].graphs)[graph](spec, weights)
    return writer


def _entries(lowering: str, writers: Mapping[str, GraphWriter]) -> dict[str, GraphEntry]:
    """A lowering's entries in bundle.json."""
    return {g: writer.entry(contract.onnx_file(g, lowering)) for g, writer in writers.items()}


def _versions() -> dict[str, str]:
    names = ("torch", "onnx_ir", "onnxruntime", "numpy")
    modules = {name: require(name, extra="export,cpu", what="export") for name in names}
    return {"m2kit": m2kit.__version__} | {n: str(m.__version__) for n, m in modules.items()}
