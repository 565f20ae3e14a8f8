"""Turns exact float32 graphs into typed half precision: what is half and what is float is in the
graph, as strongly typed builders need it.

The exporter marks every node: `float` (norm statistics, RoPE, scores, mask and softmax, GroupNorm
statistics, LFQ index, logits) or `any`. Nodes marked `any` become half unless a value they touch
was seen above HALF_LIMIT when the bundle was made; those join the float islands. The products of
queries with the cache's keys become half in spite of their mark. A cast stands wherever a value
crosses the border. Weights are written in the precision of the nodes that read them, one tensor at
a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit import contract
from m2kit.contract import ANY, FLOAT, PORTABLE, PRECISION, PRESENT, GraphIO, graph_io
from m2kit.engines.graph_files import WeightsFile, load_graph, op_counts, save_graph
from m2kit.errors import FolderError, ParityError
from m2kit.manifest import Manifest
from m2kit.precision import Precision

HALF_LIMIT = 2.0**14  # a quarter of float16's largest value: the bundle saw a few inputs only
SCORE_LIMIT = 2.0**7  # beyond it half rounds scores by more than 1/32: 3 % of a softmax's weight
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(slots=True)
class HalfGraph:
    """A graph turned into typed half precision.

    Attributes:
        model: The graph; its weights join its initializers when they are written.
        moved: Nodes marked `any` that stay float because of a large value: name -> that value.
        weights: Each weight with the float32 tensor it is made from.
    """

    model: ir.Model
    moved: dict[str, float] = field(default_factory=dict)
    weights: list[tuple[ir.Value, ir.ExternalTensor]] = field(default_factory=list)


def half_graph(path: Path, io: GraphIO, maxima: Mapping[str, float]) -> HalfGraph:
    """A bundle's graph in typed half precision.

    Args:
        path: The float32 graph.
        io: Its contract; inputs and outputs of compute type become half, all others stay.
        maxima: Value name -> largest absolute value seen, as bundle.json records them.
    """
    half = HalfGraph(load_graph(path))
    graph = half.model.graph
    for value, tensor in zip(graph.inputs, io.inputs, strict=True):
        if tensor.dtype == "compute":
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            _keep_cache_half(value, maxima)
    border = _Border(half)
    for node in list(graph):
        wanted = _precision(node, maxima, half.moved)
        for index, read in enumerate(node.inputs):
            if read is not None and read.dtype in _FLOATS:
                node.replace_input_with(index, border.typed(read, wanted, node))
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _FLOATS:
            node.attributes["to"] = ir.AttrInt64("to", wanted)
        for value in node.outputs:
            if value.dtype in _FLOATS:
                value.type = ir.TensorType(wanted)
    border.close(io)
    return half


def _keep_cache_half(cache: ir.Value, maxima: Mapping[str, float]) -> None:
    """Let what reads keys or values be half, as these are, and cast what comes out: in the island
    of the scores all keys would be cast at every step, which moves three times their bytes. Scores
    above SCORE_LIMIT stay there."""
    readers = [use.node for use in cache.uses()]
    for node in readers:
        if node.op_type == "Transpose":
            readers += [use.node for use in node.outputs[0].uses()]
    scores = [str(node.outputs[0].name) for node in readers if node.op_type == "MatMul"]
    if all(maxima.get(name, 0.0) <= SCORE_LIMIT for name in scores):
        for node in readers:
            node.metadata_props[PRECISION] = ANY


def _precision(node: ir.Node, maxima: Mapping[str, float], moved: dict[str, float]) -> ir.DataType:
    if PRECISION not in node.metadata_props:
        raise FolderError(f"the node {node.name} has no precision mark; export the model again")
    if node.metadata_props[PRECISION] == FLOAT:
        return ir.DataType.FLOAT
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    largest = max((maxima.get(str(value.name), 0.0) for value in values), default=0.0)
    if largest > HALF_LIMIT:
        moved[str(node.name)] = largest
        return ir.DataType.FLOAT
    return ir.DataType.FLOAT16


class _Border:
    """Values in the other precision, each made once."""

    def __init__(self, half: HalfGraph) -> None:
        self._half = half
        self._graph = half.model.graph
        self._originals = dict(self._graph.initializers)
        self._made: dict[tuple[str, ir.DataType], ir.Value] = {}

    def typed(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        """The value in the wanted precision, cast before `user` if need be."""
        name = str(value.name)
        key = (name, wanted)
        if name in self._originals:
            if key not in self._made:
                self._made[key] = self._initializer(value, wanted)
            return self._made[key]
        if value.dtype == wanted:
            return value
        if key not in self._made:
            self._made[key] = _cast(self._graph, value, wanted, user)
        return self._made[key]

    def close(self, io: GraphIO) -> None:
        """Give the outputs their contract's types, and drop the initializers that are replaced."""
        for index, tensor in enumerate(io.outputs):
            value = self._graph.outputs[index]
            compute = ir.DataType.FLOAT16 if tensor.dtype == "compute" else ir.DataType.FLOAT
            if value.dtype in _FLOATS and value.dtype != compute:
                value.name = f"{tensor.name}/inside"
                made = _cast(self._graph, value, compute, None)
                made.name, made.shape = tensor.name, value.shape
                self._graph.outputs[index] = made
        for name, value in self._originals.items():
            if value.dtype in _FLOATS:
                del self._graph.initializers[name]
        for value in self._made.values():
            if value.const_value is not None:
                self._graph.register_initializer(value)

    def _initializer(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        original = value.const_value
        assert original is not None
        name = str(value.name)
        taken = any(made_name == name for made_name, _ in self._made)
        made = ir.Value(
            name=f"{name}/{wanted.name.lower()}" if taken else name,
            type=ir.TensorType(wanted),
            shape=value.shape,
        )
        if isinstance(original, ir.ExternalTensor):
            self._half.weights.append((made, original))
        else:
            made.const_value = ir.tensor(original.numpy().astype(wanted.numpy()), name=made.name)
        return made


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, user: ir.Node | None) -> ir.Value:
    """A new Cast before `user`, at the end without one."""
    name = f"{value.name}/{to.name.lower()}"
    node = ir.node(
        "Cast",
        [value],
        attributes={"to": to},
        outputs=[ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)],
        name=f"{name}/Cast",
        metadata_props={PRECISION: ANY},
    )
    if user is None:
        graph.append(node)
    else:
        graph.insert_before(user, node)
    return node.outputs[0]


def _write_weights(halves: Mapping[str, HalfGraph], folder: Path) -> None:
    """Write the weights file that the graphs share, and let their initializers refer to it."""
    with WeightsFile(folder) as weights:
        for half in halves.values():
            for value, original in half.weights:
                assert value.dtype is not None
                dtype = value.dtype.numpy()

                def cast(
                    source: ir.ExternalTensor = original, dtype: np.dtype[Any] = dtype
                ) -> npt.NDArray[Any]:
                    return source.numpy().astype(dtype)

                weights.store(value, (original.name, dtype), cast)
                original.release()
                half.model.graph.register_initializer(value)


def write_half(bundle: Path, manifest: Manifest, folder: Path) -> Manifest:
    """Write a bundle's graphs and weights in typed half precision.

    Args:
        bundle: A float32 bundle.
        manifest: Its manifest.
        folder: Where to; an empty folder.

    Returns:
        The manifest with the new graphs, files not hashed yet.

    Raises:
        ParityError: Keys or values of the cache, which is half, are too large for it.
    """
    entries = manifest.lowerings[PORTABLE]
    for graph in entries:
        largest = manifest.maxima[graph].get(PRESENT, 0.0)
        if largest > HALF_LIMIT:
            raise ParityError(
                f"{graph}'s keys and values reach {largest:.4g}, expected {HALF_LIMIT:.0f} at most "
                "for half precision; use a float32 engine"
            )
    halves = {
        graph: half_graph(
            bundle / entry.file, graph_io(manifest.spec, graph), manifest.maxima[graph]
        )
        for graph, entry in entries.items()
    }
    _write_weights(halves, folder)
    written = {}
    for graph, half in halves.items():
        save_graph(half.model, folder / contract.onnx_file(graph))
        written[graph] = replace(
            entries[graph],
            file=contract.onnx_file(graph),
            compute="float16",
            ops=op_counts(half.model),
        )
    return replace(
        manifest,
        precision=Precision.FLOAT16,
        lowerings={PORTABLE: written},
        moved_to_float={graph: half.moved for graph, half in halves.items()},
    )
