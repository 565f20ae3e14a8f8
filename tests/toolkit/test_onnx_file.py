"""Hand-made files, so that nothing here needs onnx; and, where it is, agreement with it."""

import os
import random
import time

import pytest
from conftest import DIGITS_CHECKPOINT, GOLDEN

from m2kit import onnx_file
from m2kit.contract import TensorSpec
from m2kit.errors import FolderError
from m2kit.onnx_file import ExternalData, GraphFile, read_onnx

FLOAT, INT64, FLOAT16 = 1, 7, 10
EXTERNAL = (14, 1)


def varint(value):
    """An unsigned number in protobuf's encoding."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields):
    """Protobuf's encoding of (number, int | str | bytes) fields."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def value_info(name, dtype, *dims):
    shape = message(
        *((1, message((2 if isinstance(dim, str) else 1, dim))) for dim in dims),
    )
    return message((1, name), (2, message((1, message((1, dtype), (2, shape))))))


def entries(**told):
    return [(13, message((1, key), (2, value))) for key, value in told.items()]


def external(name, *dims, dtype=FLOAT, **told):
    told = {"location": "weights.bin", **told}
    return message(*((1, dim) for dim in dims), (2, dtype), (8, name), *entries(**told), EXTERNAL)


def node(op="Add", *attributes):
    return message((1, "a"), (2, "b"), (3, "n"), (4, op), *((5, a) for a in attributes), (7, ""))


INPUT = (11, value_info("x", FLOAT, "B", 3))
OUTPUT = (12, value_info("y", FLOAT16, "B", 4))


NODE = node()


def graph(*fields, nodes=(NODE,), ends=(INPUT, OUTPUT)):
    return message(*((1, item) for item in nodes), (2, "g"), *fields, *ends)


def model(*fields, **kinds):
    return message((1, 10), (2, "maker"), (7, graph(*fields, **kinds)), (8, message((2, 18))))


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def from_bytes(data):
        path = tmp_path / "graph.onnx"
        path.write_bytes(data)
        return read_onnx(path)

    return from_bytes


def refused(read, data):
    """The message with which bytes are refused."""
    with pytest.raises(FolderError) as caught:
        read(data)
    text = str(caught.value)
    assert "graph.onnx: expected an ONNX graph as m2kit writes them, found " in text
    assert "\n" not in text
    return text.split("found ")[1]


def whole():
    """A model with everything that m2kit's have."""
    constant = message((1, 2), (2, INT64), (8, "c"), (9, bytes(16)))
    packed = message((1, varint(2) + varint(300)), (2, INT64), (8, "d"), (7, bytes(600)))
    return model(
        (5, external("w", 2, 3, offset="65536", length="24")),
        (5, constant),
        (5, packed),
        (5, external("v", 5)),
        (13, value_info("between", FLOAT, 1)),
        nodes=(
            node("Concat", message((1, "axis"), (20, 2), (3, 2**64 - 1))),
            node("Constant", message((1, "value"), (20, 4), (5, constant))),
            node("Conv", message((1, "pads"), (8, 0), (8, 1), (20, 7))),
            node("Conv"),
        ),
    )


def test_a_graph_says_its_inputs_outputs_operators_and_where_its_weights_are(read):
    assert read(whole()) == GraphFile(
        inputs=(TensorSpec("x", "float32", ("B", 3)),),
        outputs=(TensorSpec("y", "float16", ("B", 4)),),
        ops={"Concat": 1, "Constant": 1, "Conv": 2},
        external=(
            ExternalData("w", "weights.bin", 65536, 24),
            ExternalData("v", "weights.bin"),
        ),
    )


def test_a_scalar_has_an_empty_shape(read):
    found = read(model(ends=((11, value_info("x", INT64)), OUTPUT)))
    assert found.inputs == (TensorSpec("x", "int64", ()),)


def tensor(*fields):
    return model((5, message((8, "w"), *fields)))


def attribute(*fields):
    return model(nodes=(node("If", message((1, "then"), *fields)),))


def outside(**told):
    """A model of one initializer whose external data is told so; None leaves a key out."""
    told = {"location": "weights.bin", **told}
    kept = {key: value for key, value in told.items() if value is not None}
    return tensor((2, FLOAT), *entries(**kept), EXTERNAL)


TWICE = (5, external("w", 2))
SPARSE = message((1, message((8, "w"))))
WRONG = {
    "empty": (b"", "an empty file"),
    "text": (b"graph: none of this is protobuf\n", "field of number"),
    "pickle": (b"\x80\x04\x95\x00", "field of number"),
    "no graph": (message((1, 10), (8, message((2, 18)))), "without graph"),
    "no operator set": (message((1, 10), (7, graph())), "without opset_import"),
    "no version": (message((7, graph()), (8, message((2, 18)))), "without ir_version"),
    "two graphs, which protobuf would join": (model() + message((7, graph())), "two of graph"),
    "a function": (model() + message((25, message((1, "f")))), "with a function"),
    "training": (model() + message((20, message((1, graph())))), "training information"),
    "a group": (model() + b"\x0b\x0c", "wire type 3"),
    "an unknown field": (model() + message((99, 1)), "number 99"),
    "a graph as a number": (message((1, 10), (7, 1)), "number 7 and wire type 0"),
    "no node": (model(nodes=()), "without nodes"),
    "no output": (model(ends=(INPUT,)), "without nodes or outputs"),
    "a node without operator": (model(nodes=(node(""),)), "without an operator"),
    "an operator named in no text": (model(nodes=(node(b"\xff"),)), "not UTF-8"),
    "two operators": (model(nodes=(node() + message((4, "Mul")),)), "two of op_type"),
    "a graph in a node": (attribute((6, graph())), "with a graph"),
    "graphs in a node": (attribute((11, graph())), "with a graph"),
    "a sparse attribute": (attribute((22, SPARSE)), "with a sparse tensor"),
    "an attribute elsewhere": (attribute((5, external("w", 2))), "attribute with external"),
    "attributes elsewhere": (attribute((10, external("w", 2))), "attribute with external"),
    "a sparse initializer": (model((15, SPARSE)), "sparse initializer"),
    "an initializer twice": (model(TWICE, TWICE), "two of the input or initializer 'w'"),
    "an input with a value": (model((5, external("x", 2))), "initializer 'x'"),
    "an input twice": (model(ends=(INPUT, INPUT, OUTPUT)), "initializer 'x'"),
    "an output twice": (model(ends=(INPUT, OUTPUT, OUTPUT)), "two of the output 'y'"),
    "an initializer without name": (model((5, external("", 2))), "without a name"),
    "an input without name": (model(ends=((11, value_info("", 1)), OUTPUT)), "without a name"),
    "an input without type": (model(ends=((11, message((1, "x"))), OUTPUT)), "known type"),
    "an input of strings": (model(ends=((11, value_info("x", 8)), OUTPUT)), "known type"),
    "an output of no size": (model(ends=((12, value_info("y", 1, "")),)), "without a name"),
    "a negative size": (model(ends=((12, value_info("y", 1, 2**64 - 1)),)), "dimension of -1"),
    "33 dimensions": (model(ends=((12, value_info("y", 1, *[1] * 33)),)), "33 dimensions"),
    "external without place": (tensor((2, FLOAT), EXTERNAL), "half told"),
    "a place without external": (tensor((2, FLOAT), *entries(location="w")), "half told"),
    "external and more": (tensor((2, FLOAT), *entries(location="w"), (14, 2**32 + 1)), "half"),
    "no location": (outside(location=None, offset="0"), "in '', no file name"),
    "two locations": (
        tensor((2, FLOAT), *entries(location="a"), *entries(location="b"), EXTERNAL),
        "'location' told",
    ),
    "an unknown key": (outside(basepath="w"), "'basepath' told"),
    "inside and outside": (
        tensor((2, FLOAT), (9, bytes(4)), *entries(location="w"), EXTERNAL),
        "inside the graph and outside",
    ),
    "fewer bytes than the shape": (model((5, external("w", 2, 3, length="20"))), "20 bytes for"),
    "fewer bytes inside": (tensor((1, 4), (2, FLOAT), (9, bytes(12))), "12 bytes for 4 float32"),
    "shapes beyond any memory": (
        model((5, external("w", 2**62, 2**62, length="24"))),
        "24 bytes for",
    ),
    "an endless number": (message((1, 10)) + b"\x08" + b"\xff" * 11, "too long"),
    "a number beyond 64 bits": (b"\x08" + b"\xff" * 9 + b"\x7f", "too long"),
    "a length beyond the file": (message((1, 10)) + b"\x3a\xff\xff\xff\xff\x0f", "cut short"),
    "a length beyond its message": (message((1, 10), (7, b"\x0a\x7f")), "cut short"),
}
LOCATIONS = ["", ".", "..", "../w", "a/w", "/w", "a\\w", "w\0", "*/_ORT_MEM_ADDR_/*"]
NUMBERS = ["", "-1", "+1", "1e3", "0x10", " 1", "1 ", "1_0", "\u0661", "9" * 19]


@pytest.mark.parametrize("case", WRONG)
def test_what_m2kit_never_writes_is_refused(read, case):
    data, found = WRONG[case]
    assert found in refused(read, data)


@pytest.mark.parametrize("location", LOCATIONS)
def test_weights_are_in_a_plain_file_beside_the_graph(read, location):
    assert "no file name" in refused(read, outside(location=location))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", ["offset", "length"])
def test_offset_and_length_are_plain_numbers(read, key, number):
    assert f"found {key} " in "found " + refused(read, outside(**{key: number}))


def test_a_name_cannot_speak_to_the_terminal(read):
    found = refused(read, model((5, external("\x1b[2J\n" + "w" * 900, 1, length="5"))))
    assert "\x1b" not in found and len(found) < 200


def test_every_truncation_of_the_graph_is_refused(read):
    data = whole()
    for size in range(len(data) - 1):
        refused(read, data[:size])


def test_no_mutation_raises_anything_else_or_takes_long(read):
    data, rng = whole(), random.Random(0)
    refusals = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.2:
            del changed[rng.randrange(len(changed)) :]
        begin = time.process_time()
        try:
            read(bytes(changed))
        except FolderError:
            refusals += 1
        assert time.process_time() - begin < 1
    assert refusals > 150


def test_a_file_larger_than_any_graph_is_not_read(tmp_path):
    path = tmp_path / "graph.onnx"
    path.touch()
    os.truncate(path, onnx_file._MOST_BYTES + 1)
    with pytest.raises(FolderError, match="268435457 bytes"):
        read_onnx(path)


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(FolderError, match="found nothing"):
        read_onnx(tmp_path / "graph.onnx")
    with pytest.raises(FolderError, match="found no file"):
        read_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FolderError, match="found no file"):
        read_onnx(tmp_path / "pipe")


def test_a_graph_of_5000_nodes_is_read_at_once(read):
    metadata = (9, message((1, "m2kit.precision"), (2, "float")))
    one = node("Concat", message((1, "axis"), (3, 1), (20, 2))) + message(metadata)
    weights = ((5, external(f"transformer.layers.{i}.weight", 2, 2)) for i in range(1000))
    data = model(*weights, nodes=(one,) * 5000)
    begin = time.process_time()
    assert read(data).ops == {"Concat": 5000}
    assert time.process_time() - begin < 2  # 0.1 s on the machine it was written on


@pytest.mark.parametrize(
    ("checkpoint", "overrides"),
    [(DIGITS_CHECKPOINT, {}), (GOLDEN / "ar_tiny.ckpt", {"heads": 4})],
    ids=["digits", "ar_tiny"],
)
def test_it_agrees_with_onnx_on_every_graph(exported, checkpoint, overrides):
    onnx = pytest.importorskip("onnx")
    paths = [
        path
        for folder in exported(checkpoint, **overrides)
        for path in sorted(folder.glob("*.onnx"))
    ]
    assert len(paths) >= 12
    for path in paths:
        found, graph = read_onnx(path), onnx.load(path, load_external_data=False).graph
        for mine, theirs in ((found.inputs, graph.input), (found.outputs, graph.output)):
            assert mine == tuple(
                TensorSpec(
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                    tuple(
                        dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
                    ),
                )
                for value in theirs
            )
        assert sum(found.ops.values()) == len(graph.node)
        for op, count in found.ops.items():
            assert count == sum(item.op_type == op for item in graph.node)
        places = []
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                told = {entry.key: entry.value for entry in tensor.external_data}
                length = int(told["length"]) if "length" in told else None
                offset = int(told.get("offset", 0))
                places.append(ExternalData(tensor.name, told["location"], offset, length))
        assert found.external == tuple(places)
