"""Half precision on any processor: a typed half graph as float32 nodes, each of whose results is
rounded to half.

ONNX Runtime's CPU provider computes half graphs in float32 and keeps the unrounded values in
between: rounding and overflow are hidden. Here they are not, so this is what half precision is
judged on where there is no GPU.

What it cannot show are the sums inside a product or a convolution: here they are float32, and a
kernel on a GPU may keep them in half, to round and overflow there. The strongly typed networks of
TensorRT have no switch for it, no builder flag and no attribute of a layer. So an engine is
compared again on the GPU where it is built or first opened.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from m2kit.contract import PORTABLE, graph_names
from m2kit.engines.graph_files import save_graph
from m2kit.errors import FolderError
from m2kit.folder_check import check_folder
from m2kit.manifest import BUNDLE, Manifest
from m2kit.manifest_file import read_manifest
from m2kit.precision import Precision
from m2kit.records import JsonObject
from m2kit.runtime.engine import Engine
from m2kit.runtime.ort.backend import OnnxRuntimeBackend


class EmulatedBackend(OnnxRuntimeBackend):
    """The typed half graphs of a folder, emulated by ONNX Runtime; `close` removes its files."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Write the emulated graphs beside the half ones, over the same weights."""
        super().__init__(folder, manifest)
        self._paths = {
            graph: folder / f"emulated_{graph}.onnx" for graph in graph_names(manifest.spec)
        }
        for graph, path in self._paths.items():
            model = emulated(ir.load(folder / manifest.graph_file(PORTABLE, graph)))
            save_graph(model, path)

    def path(self, graph: str) -> Path:
        """The emulated file of a graph."""
        return self._paths[graph]

    def options(self) -> Any:
        """Without optimisations, which fold casts away, so that every rounding happens."""
        options = super().options()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    def close(self) -> None:
        """Drop the sessions and remove the emulated files."""
        super().close()
        for path in self._paths.values():
            path.unlink(missing_ok=True)


class _EmulatedCopy(EmulatedBackend):
    """Of a folder that nothing else uses; `close` removes it."""

    def active(self) -> JsonObject:
        """What runs and how."""
        return super().active() | {"emulated": "half precision, products summed in float32"}

    def close(self) -> None:
        """Drop the sessions and remove the folder."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)


def open_emulated(folder: Path) -> Engine:
    """Open a half bundle to see what half precision makes of a model where there is no GPU: slowly,
    on a copy in the system's folder for temporary files, which `close` removes.

    Raises:
        FolderError: Not an intact bundle in half precision.
        BackendError: onnxruntime is not installed.
    """
    manifest = read_manifest(folder, BUNDLE)
    if manifest.precision is not Precision.FLOAT16:
        raise FolderError(
            f"{folder}: expected a bundle in half precision, found {manifest.precision.value}; "
            "export one with `m2kit export --precision fp16`"
        )
    check_folder(folder, manifest, trust_seen_weights=True)
    copy = Path(tempfile.mkdtemp(prefix="m2kit-emulated-"))
    try:
        for name in manifest.files:
            shutil.copyfile(folder / name, copy / name)
        backend = _EmulatedCopy(copy, manifest)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return Engine(manifest.spec, backend, defaults=manifest.sampling, info=manifest)


def emulated(model: ir.Model) -> ir.Model:
    """A half graph as float32 nodes, each of whose results is rounded to half."""
    copy = model.clone()
    graph = copy.graph
    for node in list(graph):
        halves = [v for v in (*node.inputs, *node.outputs) if v is not None and _is_half(v)]
        if node.op_type == "Cast" or not halves:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and _is_half(value):
                cast = _cast_of(value, ir.DataType.FLOAT, f"{node.name}/in{index}")
                graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
        for value in node.outputs:
            if _is_half(value):
                _round(graph, node, value)
    return copy


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let the node's result be float32, and all who read it read it cast to half."""
    cast = _cast_of(value, ir.DataType.FLOAT16, f"{value.name}/rounded")
    rounded = cast.outputs[0]
    is_output = any(output is value for output in graph.outputs)
    for user, index in [(use.node, use.idx) for use in value.uses()]:
        if user is not cast:
            user.replace_input_with(index, rounded)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, cast)
    if is_output:
        rounded.shape, rounded.name, value.name = value.shape, value.name, f"{value.name}/exact"
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = rounded


def _cast_of(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    return ir.node(
        "Cast",
        [value],
        attributes={"to": to},
        outputs=[ir.Value(name=name, type=ir.TensorType(to))],
        name=f"{name}/Cast",
    )


def _is_half(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT16
