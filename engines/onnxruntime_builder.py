"""Bundle -> engine for ONNX Runtime: optimised tokenizer graphs, fused steps in float32 or with
integer weights, compared with PyTorch's reference on this machine.
"""

from __future__ import annotations

import platform
import resource
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

import m2kit
from m2kit import contract
from m2kit.engines.quantization import SCHEMES, quantize_graph
from m2kit.engines.shared_weights import SharedWeights, op_counts, save_graph
from m2kit.errors import BackendError, InputError, require
from m2kit.folders import new_folder
from m2kit.manifest import (
    BUNDLE,
    ENGINE,
    REFERENCE_FILE,
    Manifest,
    check_files,
    files_table,
    manifest_name,
    read_manifest,
    write_manifest,
)
from m2kit.progress import Begin, silent
from m2kit.runtime.benchmark import position_seconds
from m2kit.runtime.engine import Engine
from m2kit.runtime.onnxruntime_backend import OnnxRuntimeBackend
from m2kit.runtime.verification import compare, read_reference, require_parity

FLOAT32, AUTO = "float32", "auto"
_CANDIDATES = (FLOAT32, *SCHEMES)  # of auto


@dataclass(frozen=True, slots=True)
class _Job:
    """What stays the same for every precision that is tried."""

    ort: Any
    bundle: Path
    source: Manifest
    begin: Begin


def build_onnxruntime_engine(
    bundle: Path,
    destination: Path,
    begin: Begin = silent,
    *,
    precision: str = FLOAT32,
    accept_quality: bool = False,
) -> Manifest:
    """Build the engine of a bundle; it appears only if it is near enough to PyTorch's reference.

    Args:
        bundle: A bundle folder.
        destination: The engine folder.
        begin: Called with the name of each stage as it begins.
        precision: float32; int8 or int4 of the steps' weights; auto: the fastest of them here that
            passes the quality gate.
        accept_quality: Keep an int8 or int4 engine that does not pass the quality gate; its record
            says so. What is not of the gate, its tokenizer's graphs, must agree all the same.

    Raises:
        FolderError: The bundle is damaged or the destination cannot be written.
        BackendError: onnxruntime is not installed or cannot load a graph.
        InputError: The bundle is in half precision, or holds no steps to quantize.
        ParityError: The engine is further from the reference than m2kit.tolerances allows.
    """
    ort = require("onnxruntime", extra="cpu", what="the onnxruntime backend")
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    if source.precision != FLOAT32:
        raise InputError(
            f"{bundle} is in half precision, which is for TensorRT: onnxruntime engines are built "
            "from a bundle of `m2kit export --precision fp32`"
        )
    if source.spec.transformer is None and precision != FLOAT32:
        raise InputError(
            f"{bundle} holds a tokenizer only, and integer weights are those of the steps; build "
            "it in fp32"
        )
    check_files(bundle, source, trust_seen_weights=False)
    job = _Job(ort, bundle, source, begin)
    with new_folder(destination, manifest_name(ENGINE)) as folder:
        started = time.monotonic()
        if precision == AUTO:
            manifest = _fastest(job, folder)
        else:
            manifest = _build(job, folder, precision)
            require_parity(
                manifest.parity,
                "the engine",
                accept_quality=accept_quality,
            )
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        timing = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": usage}
        manifest = replace(manifest, build=manifest.build | timing)
        write_manifest(folder, manifest)
    return manifest


def _fastest(job: _Job, folder: Path) -> Manifest:
    """Build every precision in turn, keep the fastest that passes the gate."""
    best: tuple[float, Manifest] | None = None
    tried: dict[str, dict[str, Any]] = {}
    for precision in _CANDIDATES:
        trial = folder / precision
        trial.mkdir()
        manifest = _build(job, trial, precision)
        passed = bool(manifest.parity["passed"])
        tried[precision] = {"passed": passed}
        seconds = float("inf")
        if passed:
            job.begin(f"timing {precision}")
            backend = OnnxRuntimeBackend(trial, manifest)
            with Engine(
                manifest.spec, backend, defaults=manifest.sampling, info=manifest
            ) as engine:
                seconds = position_seconds(engine)
            tried[precision]["position_ms"] = round(seconds * 1e3, 3)
        elif precision == FLOAT32:
            require_parity(manifest.parity, "the engine")
        if passed and (best is None or seconds < best[0]):
            if best is not None:
                shutil.rmtree(folder / best[1].precision)
            best = (seconds, manifest)
        else:
            shutil.rmtree(trial)
    assert best is not None  # float32 passes or raises
    manifest = best[1]
    for path in (folder / manifest.precision).iterdir():
        path.rename(folder / path.name)
    (folder / manifest.precision).rmdir()
    return replace(manifest, build=manifest.build | {"tried": tried})


def _build(job: _Job, folder: Path, precision: str) -> Manifest:
    """Write one engine's files and compare them with the reference; the gate is the caller's."""
    source, begin = job.source, job.begin
    begin(f"writing graphs and weights, {precision}")
    with SharedWeights(folder) as weights:
        lowerings, quantized = _write_graphs(job, folder, precision, weights)
        weight_bytes = _weight_bytes(folder, lowerings)
    shutil.copyfile(job.bundle / REFERENCE_FILE, folder / REFERENCE_FILE)
    build: dict[str, Any] = {
        "backend": OnnxRuntimeBackend.name,
        "backend_version": job.ort.__version__,
        "bundle": job.bundle.resolve().name,
        "precision": precision,
        "rows": None,  # any number of rows, any image size
        "image_sizes": None,
        "os": platform.system(),
        "architecture": platform.machine(),
        "weight_bytes": weight_bytes,
    }
    if precision in SCHEMES:
        scheme = SCHEMES[precision]
        build |= {
            "quantized_matmuls": quantized,
            "bits": scheme.bits,
            "head_bits": scheme.head_bits,
            "block_size": scheme.block_size,
        }
    manifest = replace(
        source,
        kind=ENGINE,
        files=files_table(folder),
        lowerings=lowerings,
        versions=source.versions | {"m2kit": m2kit.__version__},
        build=build,
    )
    advance = begin("comparing the engine with PyTorch's reference", source.spec.positions)
    with Engine(source.spec, OnnxRuntimeBackend(folder, manifest)) as engine:
        reference = read_reference(folder / REFERENCE_FILE)
        report = compare(engine, reference, advance, precision=precision)
    return replace(manifest, parity=report)


def _write_graphs(
    job: _Job, folder: Path, precision: str, weights: SharedWeights
) -> tuple[dict[str, Any], int]:
    """Write the graphs an engine of this precision holds; returns its lowerings and how many
    matmuls were quantized."""
    source = job.source
    lowerings: dict[str, Any] = {contract.PORTABLE: {}}
    quantized = 0
    fused = source.lowerings.get(contract.ONNXRUNTIME, {})
    for lowering, graphs in source.lowerings.items():
        for graph, entry in graphs.items():
            is_step = graph in contract.STEP_GRAPHS
            if is_step and precision != FLOAT32 and lowering == contract.PORTABLE and fused:
                continue  # integer weights are for the fused steps where there are such
            if is_step:
                model = ir.load(job.bundle / entry["file"])
            else:
                model = _optimised(job, graph, folder)
            if is_step and precision in SCHEMES:
                found = quantize_graph(model, SCHEMES[precision], weights)
                if not found:
                    raise BackendError(
                        f"{graph} has no matmul to quantize: expected one for each linear layer; "
                        "export the model again"
                    )
                quantized += found
            _keep_weights(model, weights)
            save_graph(model, folder / entry["file"])
            lowerings.setdefault(lowering, {})[graph] = entry | {"ops": op_counts(model)}
    for path in folder.glob("optimised*"):
        path.unlink()
    return lowerings, quantized


def _weight_bytes(folder: Path, lowerings: dict[str, Any]) -> dict[str, int]:
    """Stored bytes of the weights of each graph, scales included; of a step those that one run
    needs: all but heads and embedding tables. "heads" are all heads, "tables" all embeddings, "row"
    is an embedding row."""
    found: dict[str, int] = {}
    tables: dict[str, int] = {}
    for graphs in (lowerings[contract.PORTABLE], lowerings.get(contract.ONNXRUNTIME, {})):
        for graph, entry in graphs.items():
            model = ir.load(folder / entry["file"])
            heads, rest = 0, 0
            for value in model.graph.initializers.values():
                source = value.const_value
                if not isinstance(source, ir.ExternalTensor):
                    continue
                users = [use.node for use in value.uses()]
                if any(user.op_type == "Gather" for user in users):
                    tables[str(value.name)] = source.nbytes
                    found["row"] = source.nbytes // int(source.shape.numpy()[0])
                elif any(contract.is_logits(str(user.outputs[0].name)) for user in users):
                    heads += source.nbytes
                else:
                    rest += source.nbytes
            found[graph] = rest
            if graph == contract.INTRA_STEP:
                found["heads"] = heads
    return found | {"tables": sum(tables.values())}


def _keep_weights(model: ir.Model, weights: SharedWeights) -> None:
    """Move a graph's large initializers from other files into the shared one."""
    for value in model.graph.initializers.values():
        source = value.const_value
        if isinstance(source, ir.ExternalTensor) and Path(source.path) != weights.path:
            value.type, value.shape = ir.TensorType(source.dtype), source.shape
            weights.store(value, (source.path, source.offset, source.length), source.numpy)
            source.release()


def _optimised(job: _Job, graph: str, folder: Path) -> ir.Model:
    """A tokenizer graph after ONNX Runtime's optimisations that hold on any processor.

    What is left to opening is the layout of convolutions, which is this processor's own.
    """
    path = folder / f"optimised_{graph}.onnx"
    options = job.ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = job.ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    external = {
        "session.optimized_model_external_initializers_file_name": f"optimised_{graph}.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": "4096",
    }
    for name, value in external.items():
        options.add_session_config_entry(name, value)
    source = job.bundle / job.source.graph_file(contract.PORTABLE, graph)
    try:
        job.ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
        raise BackendError(f"ONNX Runtime cannot optimise {source}: {error}") from error
    return ir.load(path)
