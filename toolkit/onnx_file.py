"""What an ONNX file says of itself, read without the onnx package.

A bundle or an engine is opened where numpy alone may be installed, and what opens its graphs
afterwards is native code. This reads protobuf's wire format (protobuf.dev/programming-guides/
encoding) as far as onnx.proto needs it, and refuses what m2kit never writes: graphs inside nodes,
functions, sparse tensors, weights anywhere but in a plain file beside the graph, and any field that
is not in the tables below. A field that may stand once and stands twice is refused as well, since
protobuf would merge the two. Nothing here recurses: the tables nest six messages deep, no further.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2kit.contract import TensorSpec
from m2kit.errors import FolderError

_MOST_BYTES = 256 * 2**20  # of a graph file; weights are in a file of their own
_MOST_REPEATS = 1_000_000  # fields of a message: nodes and tensors of a graph
_MOST_DIMENSIONS = 32  # of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are refused
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the values of an initializer are: a plain file name, and the bytes of that file.

    Attributes:
        length: None where the graph does not tell.
    """

    tensor: str
    location: str
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class GraphFile:
    """What a graph file says of itself; `ops` is op_type -> number of nodes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int]
    external: tuple[ExternalData, ...]


class _Wrong(Exception):
    """What was found instead of a graph of m2kit's."""


_DTYPES = {  # TensorProto.DataType -> numpy's name and the bytes of one value
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2),
    6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8),
    12: ("uint32", 4), 13: ("uint64", 8),
}  # fmt: skip

_Field = tuple[str, str]  # name, and what to do with it:
_ONE, _MANY = "one", "many"  # keep the only one, or all
_SKIP, _REFUSE = "skip", "refuse"  # of no concern here, or never in a graph of m2kit's
_Table = dict[int, _Field]  # number << 3 | wire type -> field


def _table(*fields: tuple[int, str, str] | tuple[int, str, str, tuple[int, ...]]) -> _Table:
    """The fields of a message: (number, name, what to do, wire types or (_BYTES,))."""
    found = {}
    for number, name, action, *wires in fields:
        for wire in wires[0] if wires else (_BYTES,):
            found[number << 3 | wire] = (name, action)
    return found


_INT = (_VARINT,)
_INTS = (_VARINT, _BYTES)  # repeated numbers may be packed
_ENTRY = _table((1, "key", _ONE), (2, "value", _ONE))
_DIMENSION = _table((1, "value", _ONE, _INT), (2, "param", _ONE), (3, "denotation", _SKIP))
_SHAPE = _table((1, "dim", _MANY))
_TENSOR_TYPE = _table((1, "elem_type", _ONE, _INT), (2, "shape", _ONE))
_TYPE = _table((1, "tensor_type", _ONE), (6, "denotation", _SKIP))
_VALUE = _table((1, "name", _ONE), (2, "type", _ONE), (3, "doc", _SKIP), (4, "metadata", _SKIP))
_TENSOR = _table(
    (1, "dims", _MANY, _INTS), (2, "data_type", _ONE, _INT), (3, "segment", _REFUSE),
    (4, "float_data", _SKIP, (_FIXED32, _BYTES)), (5, "int32_data", _SKIP, _INTS),
    (6, "string_data", _REFUSE), (7, "int64_data", _SKIP, _INTS), (8, "name", _ONE),
    (9, "raw_data", _ONE), (10, "double_data", _SKIP, (_FIXED64, _BYTES)),
    (11, "uint64_data", _SKIP, _INTS), (12, "doc", _SKIP), (13, "external_data", _MANY),
    (14, "data_location", _ONE, _INT), (16, "metadata", _SKIP),
)  # fmt: skip
_ATTRIBUTE = _table(
    (1, "name", _SKIP), (2, "f", _SKIP, (_FIXED32,)), (3, "i", _SKIP, _INT), (4, "s", _SKIP),
    (5, "tensor", _MANY), (6, "graph", _REFUSE), (7, "floats", _SKIP, (_FIXED32, _BYTES)),
    (8, "ints", _SKIP, _INTS), (9, "strings", _SKIP), (10, "tensor", _MANY),
    (11, "graph", _REFUSE), (13, "doc", _SKIP), (20, "type", _SKIP, _INT),
    (22, "sparse tensor", _REFUSE), (23, "sparse tensor", _REFUSE),
)  # fmt: skip
_NODE = _table(
    (1, "input", _SKIP), (2, "output", _SKIP), (3, "name", _SKIP), (4, "op_type", _ONE),
    (5, "attribute", _MANY), (6, "doc", _SKIP), (7, "domain", _SKIP), (9, "metadata", _SKIP),
)  # fmt: skip
_GRAPH = _table(
    (1, "node", _MANY), (2, "name", _SKIP), (5, "initializer", _MANY), (10, "doc", _SKIP),
    (11, "input", _MANY), (12, "output", _MANY), (13, "value_info", _SKIP),
    (14, "quantization", _SKIP), (15, "sparse initializer", _REFUSE), (16, "metadata", _SKIP),
)  # fmt: skip
_MODEL = _table(
    (1, "ir_version", _ONE, _INT), (2, "producer", _SKIP), (3, "producer_version", _SKIP),
    (4, "domain", _SKIP), (5, "model_version", _SKIP, _INT), (6, "doc", _SKIP),
    (7, "graph", _ONE), (8, "opset_import", _MANY), (14, "metadata", _SKIP),
    (20, "training information", _REFUSE), (25, "function", _REFUSE),
)  # fmt: skip


def read_onnx(path: Path) -> GraphFile:
    """What the graph file at `path` says of itself.

    Raises:
        FolderError: It is not a whole ONNX model as m2kit writes them.
    """
    try:
        return _Reader(_read(path)).model()
    except _Wrong as wrong:
        raise FolderError(
            f"{path}: expected an ONNX graph as m2kit writes them, found {wrong}; "
            "make its folder again"
        ) from wrong


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _Wrong("no file" if path.exists() else "nothing")
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise _Wrong(f"{size} bytes, of which there may be {_MOST_BYTES}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no system takes
        raise _Wrong(f"a file that cannot be read ({error})") from error
    if not data:
        raise _Wrong("an empty file")
    return data


class _Reader:
    """One file. Messages are passed as (start, end) of its bytes, which are never copied."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def model(self) -> GraphFile:
        model = self._fields((0, len(self._data)), _MODEL, "a model")
        for name in ("ir_version", "opset_import", "graph"):
            if name not in model:
                raise _Wrong(f"a model without {name}: cut short, or no model")
        graph = self._fields(model["graph"], _GRAPH, "a graph")
        inputs = tuple(self._value(span, "input") for span in graph.get("input", ()))
        outputs = tuple(self._value(span, "output") for span in graph.get("output", ()))
        tensors = [self._tensor(span) for span in graph.get("initializer", ())]
        names = [*(tensor.name for tensor in inputs), *(name for name, _ in tensors)]
        _distinct("input or initializer", names)
        _distinct("output", (tensor.name for tensor in outputs))
        ops = Counter(self._op_type(span) for span in graph.get("node", ()))
        if not ops or not outputs:
            raise _Wrong("a graph without nodes or outputs")
        external = tuple(place for _, place in tensors if place is not None)
        return GraphFile(inputs, outputs, dict(ops), external)

    def _op_type(self, span: tuple[int, int]) -> str:
        """The operator of a node, its attributes checked."""
        node = self._fields(span, _NODE, "a node")
        for attribute in node.get("attribute", ()):
            for tensor in self._fields(attribute, _ATTRIBUTE, "an attribute").get("tensor", ()):
                if self._tensor(tensor)[1] is not None:
                    raise _Wrong("an attribute with external data")
        return self._name(node.get("op_type"), "node without an operator")

    def _value(self, span: tuple[int, int], kind: str) -> TensorSpec:
        """An input or output."""
        value = self._fields(span, _VALUE, f"an {kind}")
        name = self._name(value.get("name"), f"{kind} without a name")
        told = self._fields(value.get("type", (0, 0)), _TYPE, "a type")
        tensor = self._fields(told.get("tensor_type", (0, 0)), _TENSOR_TYPE, "a tensor type")
        dtype = _DTYPES.get(tensor.get("elem_type", 0))
        if dtype is None or "shape" not in tensor:
            raise _Wrong(f"the {kind} {_shown(name)} without a known type and shape")
        dims = self._fields(tensor["shape"], _SHAPE, "a shape").get("dim", ())
        if len(dims) > _MOST_DIMENSIONS:
            raise _Wrong(f"{len(dims)} dimensions of {_shown(name)}")
        return TensorSpec(name, dtype[0], tuple(self._dimension(dim) for dim in dims))

    def _dimension(self, span: tuple[int, int]) -> int | str:
        dim = self._fields(span, _DIMENSION, "a dimension")
        if ("value" in dim) == ("param" in dim):
            raise _Wrong("a dimension without one size or one name")
        if "param" in dim:
            return self._name(dim["param"], "dimension without a name")
        return _size(dim["value"])

    def _tensor(self, span: tuple[int, int]) -> tuple[str, ExternalData | None]:
        """Name of a tensor, empty in an attribute, and where its values are if not in it."""
        tensor = self._fields(span, _TENSOR, "a tensor")
        name = self._text(tensor.get("name", (0, 0)))
        location = tensor.get("data_location", 0)
        if location not in (0, _EXTERNAL) or bool(location) != ("external_data" in tensor):
            raise _Wrong(f"external data of {_shown(name)} that is half told")
        if not location:
            start, end = tensor.get("raw_data", (0, 0))
            self._check_length(name, tensor, end - start if "raw_data" in tensor else None)
            return name, None
        if "raw_data" in tensor:
            raise _Wrong(f"values of {_shown(name)} inside the graph and outside")
        place = self._place(name, tensor["external_data"])
        self._check_length(name, tensor, place.length)
        return name, place

    def _check_length(self, name: str, tensor: dict[str, Any], length: int | None) -> None:
        """Compare the bytes of a tensor with its shape and type."""
        dims = [size for value in tensor.get("dims", ()) for size in self._sizes(value)]
        if len(dims) > _MOST_DIMENSIONS:
            raise _Wrong(f"{len(dims)} dimensions of {_shown(name)}")
        dtype = _DTYPES.get(tensor.get("data_type", 0))
        if dtype is None:
            raise _Wrong(f"the data type {tensor.get('data_type', 0)} of {_shown(name)}")
        if length is not None and length != math.prod(dims) * dtype[1]:
            shape = " x ".join(map(str, dims)) or "one"
            raise _Wrong(f"{length} bytes for {shape} {dtype[0]} of {_shown(name)}")

    def _place(self, name: str, spans: list[tuple[int, int]]) -> ExternalData:
        told: dict[str, str] = {}
        for span in spans:
            entry = self._fields(span, _ENTRY, "an entry")
            key = self._text(entry.get("key", (0, 0)))
            if key in told or key not in ("location", "offset", "length", "checksum"):
                raise _Wrong(f"{_shown(key)} told of the external data of {_shown(name)}")
            told[key] = self._text(entry.get("value", (0, 0)))
        location = told.get("location", "")
        if location in ("", ".", "..") or re.search(r"[/\\\0]", location):
            raise _Wrong(f"external data of {_shown(name)} in {_shown(location)}, no file name")
        for key in ("offset", "length"):
            if key in told and not re.fullmatch("[0-9]{1,18}", told[key]):
                raise _Wrong(f"{key} {_shown(told[key])} of the external data of {_shown(name)}")
        length = int(told["length"]) if "length" in told else None
        return ExternalData(name, location, int(told.get("offset", 0)), length)

    def _sizes(self, value: int | tuple[int, int]) -> list[int]:
        """The numbers of a repeated field: one, or several packed."""
        if isinstance(value, int):
            return [_size(value)]
        at, end = value
        if end - at > 10 * _MOST_DIMENSIONS:
            raise _Wrong(f"{end - at} bytes of dimensions")
        sizes = []
        while at < end:
            number, at = self._varint(at, end)
            sizes.append(_size(number))
        return sizes

    def _name(self, span: tuple[int, int] | None, without: str) -> str:
        name = self._text(span or (0, 0))
        if not name:
            raise _Wrong(f"a {without}")
        return name

    def _text(self, span: tuple[int, int]) -> str:
        try:
            return self._data[span[0] : span[1]].decode()
        except UnicodeDecodeError as error:
            raise _Wrong("a name that is not UTF-8") from error

    def _fields(self, span: tuple[int, int], table: _Table, what: str) -> dict[str, Any]:
        """The fields of a message: name -> number or (start, end); a list of them if _MANY.

        This loop takes nearly all of the time: 5,000 nodes have 60,000 fields.
        """
        data, (at, end) = self._data, span
        found: dict[str, Any] = {}
        count = 0
        while at < end:
            count += 1
            if count > _MOST_REPEATS:
                raise _Wrong(f"{what} of over {_MOST_REPEATS} fields")
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self._varint(at - 1, end)
            field = table.get(tag)
            if field is None:
                raise _Wrong(f"{what} with a field of number {tag >> 3} and wire type {tag & 7}")
            name, action = field
            value: int | tuple[int, int]
            wire = tag & 7
            if wire == _BYTES:
                size, at = self._varint(at, end)
                value = (at, at + size)
                at += size
            elif wire == _VARINT:
                value, at = self._varint(at, end)
            else:
                value = (at, at + (8 if wire == _FIXED64 else 4))
                at = value[1]
            if at > end:
                raise _Wrong(f"{what} that is cut short")
            if action == _ONE:
                if name in found:
                    raise _Wrong(f"{what} with two of {name}")
                found[name] = value
            elif action == _MANY:
                found.setdefault(name, []).append(value)
            elif action == _REFUSE:
                raise _Wrong(f"{what} with a {name}")
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned number of up to ten bytes, and where it ends."""
        value = 0
        for index in range(at, min(at + 10, end)):
            byte = self._data[index]
            value |= (byte & 127) << (7 * (index - at))
            if byte < 128:
                if value >> 64:
                    break
                return value, index + 1
        raise _Wrong("a number that is cut short or too long")


def _size(value: int) -> int:
    """A dimension; a negative one arrives as its two's complement."""
    if value >> 63:
        raise _Wrong(f"a dimension of {value - 2**64}")
    return value


def _distinct(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise _Wrong(f"an {kind} without a name")
        if name in seen:
            raise _Wrong(f"two of the {kind} {_shown(name)}")
        seen.add(name)


def _shown(text: str) -> str:
    """A name of the file's, harmless to print."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
