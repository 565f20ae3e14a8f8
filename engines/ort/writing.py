"""The files of an engine for ONNX Runtime: optimised tokenizer graphs, fused steps in float32 or
with integer weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from m2kit import contract
from m2kit.build import Build, Target, WeightBytes
from m2kit.contract import PORTABLE
from m2kit.engines.building import Job
from m2kit.engines.graph_files import WeightsFile, load_graph, op_counts, save_graph
from m2kit.engines.ort.quantization import Scheme, quantize_graph, round_by_use, scheme_of
from m2kit.errors import BackendError, InputError
from m2kit.manifest import GraphEntry, Manifest
from m2kit.precision import Precision
from m2kit.runtime.ort.library import load_onnxruntime, path_text

Lowerings = dict[str, dict[str, GraphEntry]]


def write_engine(job: Job) -> Manifest:
    """Write an engine's files.

    Raises:
        InputError: A bundle that is not float32, or integer weights without steps.
        BackendError: A graph that ONNX Runtime does not optimise, or without weights to quantize.
    """
    source, precision = job.source, job.precision
    if source.precision is not Precision.FLOAT32:
        raise InputError(
            f"{job.bundle} is in half precision, which is for TensorRT: onnxruntime engines are "
            "built from a bundle of `m2kit export --precision fp32`"
        )
    if source.spec.transformer is None and job.options.precision != Precision.FLOAT32:
        raise InputError(
            f"{job.bundle} holds a tokenizer only, and integer weights are those of the steps; "
            "build it in fp32"
        )
    scheme = scheme_of(precision, job.options)
    with WeightsFile(job.folder) as weights:
        if scheme is not None and scheme.rounding == "gptq":
            round_by_use(job, scheme, weights)
        job.begin(f"writing graphs and weights, {precision.flag}")
        lowerings, matmuls = _write_graphs(job, scheme, weights)
        weight_bytes = _weight_bytes(job.folder, lowerings)
    version = str(load_onnxruntime().__version__)
    build = Build(
        backend=contract.ONNXRUNTIME,
        backend_version=version,
        bundle=job.bundle.resolve().name,
        options=job.options,
        target=Target.here(),
        weight_bytes=weight_bytes,
        quantization=None if scheme is None else scheme.record(matmuls),
    )
    written = replace(source, lowerings=lowerings, precision=precision)
    return job.engine(written, build, {"onnxruntime": version})


def _write_graphs(job: Job, scheme: Scheme | None, weights: WeightsFile) -> tuple[Lowerings, int]:
    """Write the graphs of an engine whose steps have such integer weights, or none; returns its
    lowerings and how many matmuls were quantized."""
    matmuls = 0
    lowerings: Lowerings = {PORTABLE: {}}
    for lowering, graphs in sorted(job.source.lowerings.items()):  # the steps' weights lie first
        for graph, entry in graphs.items():
            is_step = graph in contract.STEP_GRAPHS
            if is_step and scheme is not None and lowering == PORTABLE and job.source.fused:
                continue  # integer weights are for the fused steps where there are such
            model = load_graph(job.bundle / entry.file) if is_step else _optimised(job, graph)
            if is_step and scheme is not None:
                found = quantize_graph(model, scheme, weights)
                if not found:
                    raise BackendError(
                        f"{graph} has no matmul to quantize: expected one for each linear layer; "
                        "export the model again"
                    )
                matmuls += found
            _keep_weights(model, weights)
            save_graph(model, job.folder / entry.file)
            lowerings.setdefault(lowering, {})[graph] = replace(entry, ops=op_counts(model))
    for path in job.folder.glob("optimised*"):
        path.unlink()
    return lowerings, matmuls


def _weight_bytes(folder: Path, lowerings: Lowerings) -> WeightBytes:
    """Stored bytes of the weights of each graph, in the lowering that is run."""
    found: dict[str, int] = {}
    tables: dict[str, int] = {}
    heads_bytes, row = 0, 0
    for lowering in (PORTABLE, contract.ONNXRUNTIME):  # the one that is run stands last
        for graph, entry in lowerings.get(lowering, {}).items():
            model = ir.load(folder / entry.file)
            heads, rest = 0, 0
            for value in model.graph.initializers.values():
                source = value.const_value
                if not isinstance(source, ir.ExternalTensor):
                    continue
                users = [use.node for use in value.uses()]
                if any(user.op_type == "Gather" for user in users):
                    tables[str(value.name)] = source.nbytes
                    row = source.nbytes // int(source.shape.numpy()[0])
                elif any(contract.is_logits(str(user.outputs[0].name)) for user in users):
                    heads += source.nbytes
                else:
                    rest += source.nbytes
            found[graph] = rest
            if graph == contract.INTRA_STEP:
                heads_bytes = heads
    return WeightBytes(found, heads_bytes, sum(tables.values()), row)


def _keep_weights(model: ir.Model, weights: WeightsFile) -> None:
    """Move a graph's large initializers from other files into the shared one."""
    for value in model.graph.initializers.values():
        source = value.const_value
        if isinstance(source, ir.ExternalTensor) and Path(source.path) != weights.path:
            value.type, value.shape = ir.TensorType(source.dtype), source.shape
            weights.store(value, (source.path, source.offset, source.length), source.numpy)
            source.release()


def _optimised(job: Job, graph: str) -> ir.Model:
    """A tokenizer graph after ONNX Runtime's optimisations that hold on any processor.

    What is left to opening is the layout of convolutions, which is this processor's own.
    """
    ort = load_onnxruntime()
    path = job.folder / f"optimised_{graph}.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = path_text(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    external = {
        "session.optimized_model_external_initializers_file_name": f"optimised_{graph}.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": "4096",
    }
    for name, value in external.items():
        options.add_session_config_entry(name, value)
    source = path_text(job.bundle / job.source.graph_file(PORTABLE, graph))
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
        raise BackendError(f"ONNX Runtime cannot optimise {source}: {error}") from error
    return ir.load(path)
