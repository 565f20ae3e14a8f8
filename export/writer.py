"""Writes one ONNX graph, node by node, and the weights file that all graphs of a bundle share.

Graphs are written, not traced: every node is of opset 18 or, in the onnxruntime lowering, one of
ONNX Runtime's own, carries its precision mark from the moment it exists, and does not depend on the
torch version. No weight is in memory until `DeclaredWeights.write` streams it from the checkpoint;
identical tensors are stored once.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit.contract import ANY, FLOAT, PRECISION, GraphIO, TensorSpec
from m2kit.engines.graph_files import MICROSOFT, WeightsFile, save_graph
from m2kit.manifest import GraphEntry

OPSET = 18
IR_VERSION = 10
PROBE = "absolute_maxima"  # extra output of a probe graph

Array = npt.NDArray[Any]
Load = Callable[[str], Array]  # checkpoint name -> array


@dataclass(frozen=True, slots=True)
class _Declared:
    """A tensor that is yet to be written.

    Attributes:
        shape: As it is stored.
        convert: Turns the checkpoint's array into the stored one.
        parts: Checkpoint names of what is joined along the first axis; its own name if none.
    """

    shape: tuple[int, ...]
    convert: Callable[[Array], Array]
    parts: tuple[str, ...]

    def made(self, name: str, load: Load) -> Array:
        """What is stored, in float32."""
        parts = [load(part) for part in self.parts or (name,)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        array = np.ascontiguousarray(self.convert(whole), np.float32)
        assert array.shape == self.shape, f"{name}: declared {self.shape}, loaded {array.shape}"
        return array


class DeclaredWeights:
    """The tensors that a bundle's graphs declare: shapes known from the start, bytes only when
    written."""

    def __init__(self) -> None:
        """Begin with no tensors."""
        self._tensors: dict[str, _Declared] = {}
        self._file: WeightsFile | None = None

    def add(self, name: str, declared: _Declared) -> None:
        """Declare a tensor."""
        known = self._tensors.setdefault(name, declared)
        assert known.shape == declared.shape, f"{name}: {known.shape} and {declared.shape}"

    def write(self, folder: Path, load: Load) -> None:
        """Stream every tensor, made of float32 arrays from `load(name)`, into the weights file."""
        with WeightsFile(folder) as self._file:
            for name, declared in self._tensors.items():
                self._file.write(name, functools.partial(declared.made, name, load))

    def refer(self, value: ir.Value) -> None:
        """Let an initializer refer to the written tensor of its name."""
        assert self._file is not None, "the weights file has not been written"
        self._file.refer(value, str(value.name))


_VERSIONS = {"": OPSET, MICROSOFT: 1}
_TYPES = {
    "float32": ir.DataType.FLOAT,
    "compute": ir.DataType.FLOAT,
    "int64": ir.DataType.INT64,
}


class GraphWriter:
    """One graph under construction. `op` adds a node and returns its first output."""

    def __init__(self, name: str, io: GraphIO, weights: DeclaredWeights) -> None:
        """Begin a graph with the inputs of its contract.

        Attributes:
            inputs: Name -> value, in the contract's order.
        """
        self.name = name
        self.inputs = {tensor.name: _value(tensor) for tensor in io.inputs}
        self._io = io
        self._weights = weights
        self._nodes: list[ir.Node] = []
        self._outputs: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._weight_values: dict[str, ir.Value] = {}
        self._scope: list[str] = []
        self._precision = ANY

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names nodes after the part of the model they belong to."""
        self._scope.append(name)
        yield
        self._scope.pop()

    @contextlib.contextmanager
    def float_island(self) -> Iterator[None]:
        """Marks nodes that must stay float32 when the graph is turned into half precision."""
        outer, self._precision = self._precision, FLOAT
        yield
        self._precision = outer

    def output(self, name: str, value: ir.Value) -> None:
        """Make `value` the output of that name."""
        (tensor,) = (tensor for tensor in self._io.outputs if tensor.name == name)
        value.name = name
        value.type = ir.TensorType(_TYPES[tensor.dtype])
        value.shape = ir.Shape(tensor.shape)
        self._outputs[name] = value

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        convert: Callable[[Array], Array] = lambda array: array,
        parts: tuple[str, ...] = (),
    ) -> ir.Value:
        """A checkpoint tensor, or several joined as one, stored with `shape` after `convert`."""
        if name not in self._weight_values:
            self._weights.add(name, _Declared(shape, convert, parts))
            self._weight_values[name] = ir.Value(
                name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape)
            )
        return self._weight_values[name]

    def constant(self, array: npt.ArrayLike, dtype: type = np.float32) -> ir.Value:
        """A small constant kept inside the graph; equal ones are one initializer."""
        data: Array = np.asarray(array, dtype)
        key = (data.dtype.name, data.tobytes(), data.shape)
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            tensor = ir.tensor(data, name=name)
            self._constants[key] = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(data.shape),
                const_value=tensor,
            )
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> ir.Value:
        """A 1-D int64 constant: axes, shapes, sizes."""
        return self.constant(values, np.int64)

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs; an input that is left out is None."""
        name = "/".join([*self._scope, f"{op_type}_{len(self._nodes)}"])
        suffixes = [""] if outputs == 1 else [f".{index}" for index in range(outputs)]
        dtype = ir.TensorType(_result_type(op_type, inputs, attributes))
        node = ir.node(
            op_type,
            inputs=list(inputs),
            domain=domain,
            attributes=attributes or None,
            outputs=[ir.Value(name=name + suffix, type=dtype) for suffix in suffixes],
            name=name,
            metadata_props={PRECISION: self._precision},
        )
        self._nodes.append(node)
        return node.outputs

    def entry(self, file: str) -> GraphEntry:
        """What bundle.json says of the graph in that file."""
        ops = dict(sorted(Counter(node.op_type for node in self._nodes).items()))
        return GraphEntry(file, "float32", ops, self._io.inputs, self._io.outputs)

    def save(self, path: Path) -> None:
        """Write the finished graph; the weights file must have been written."""
        for value in self._weight_values.values():
            self._weights.refer(value)
        domains = {"", *(node.domain for node in self._nodes)}
        graph = ir.Graph(
            list(self.inputs.values()),
            [self._outputs[tensor.name] for tensor in self._io.outputs],
            nodes=self._nodes,
            initializers=[*self._weight_values.values(), *self._constants.values()],
            opset_imports={domain: _VERSIONS[domain] for domain in sorted(domains)},
            name=self.name,
        )
        self._model = ir.Model(graph, ir_version=IR_VERSION, producer_name="m2kit")
        save_graph(self._model, path)

    def save_probe(self, path: Path) -> list[str]:
        """Write the saved graph with one more output, PROBE: the absolute maxima of its floats.

        Returns:
            The names of the values, in the order of the output (n) float32.
        """
        graph = self._model.clone().graph
        one = ir.Value(name="probe_shape", const_value=ir.tensor([1], name="probe_shape"))
        graph.register_initializer(one)
        names, maxima = [], []
        for node in list(graph):
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    absolute = ir.node("Abs", [value])
                    largest = ir.node("ReduceMax", absolute.outputs, attributes={"keepdims": 0})
                    single = ir.node("Reshape", [largest.outputs[0], one])
                    # In place: run in this order, no value outlives its own maximum.
                    graph.insert_after(node, [absolute, largest, single])
                    names.append(str(value.name))
                    maxima.append(single.outputs[0])
        joined = ir.node(
            "Concat", maxima, attributes={"axis": 0},
            outputs=[_value(TensorSpec(PROBE, "float32", (len(names),)))],
        )  # fmt: skip
        graph.append(joined)
        graph.outputs.append(joined.outputs[0])
        save_graph(ir.Model(graph, ir_version=IR_VERSION), path)
        return names


def _result_type(
    op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
) -> ir.DataType:
    """Element type of a node's outputs, for the operators written here."""
    if op_type in ("Equal", "Greater", "Less"):
        return ir.DataType.BOOL
    if op_type == "Shape":
        return ir.DataType.INT64
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    source = inputs[1] if op_type == "Where" else inputs[0]
    assert source is not None and source.dtype is not None, f"{op_type} of an untyped value"
    return source.dtype


def _value(tensor: TensorSpec) -> ir.Value:
    return ir.Value(
        name=tensor.name,
        type=ir.TensorType(_TYPES[tensor.dtype]),
        shape=ir.Shape(tensor.shape),
    )
