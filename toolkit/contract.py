"""The graph contract: names, dtypes and shapes of every graph's inputs and outputs.

This is the only place where these names are typed; export, engines, runtime and tests read them
from here. "compute" is float32 in a bundle and float16 in a half-precision engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import SpecError

WEIGHTS_FILE = "weights.bin"  # of all graphs of a folder
REFERENCE_FILE = "reference.npz"
PLAN_SUFFIX = ".plan"

ENCODER = "encoder"
DECODER = "decoder"
INTER_STEP = "inter_step"
INTRA_STEP = "intra_step"
STEP_GRAPHS = (INTER_STEP, INTRA_STEP)

IMAGE = "image"
LATENT = "latent"
CODES = "codes"
TOKENS = "tokens"
CLASS_ID = "class_id"
TOKEN = "token"
POSITION = "position"
HIDDEN = "hidden"
SUB_TOKEN = "sub_token"
SUB_POSITION = "sub_position"
PRESENT = "present"

PORTABLE = "portable"  # the lowering of primitive ops that every backend runs
ONNXRUNTIME = "onnxruntime"  # step graphs of fused ops that update the KV cache in place
FUSED_HEAD_SIZES = 16  # ONNX Runtime's fused attention takes multiples of this

PRECISION = "m2kit.precision"  # metadata key of every node; its values:
FLOAT, ANY = "float", "any"  # must stay float32 in half precision, or need not

_PAST = "past."
_LOGITS = "logits."
_PRESENT = "present."


def past_key(layer: int) -> str:
    """Name of a layer's cached keys."""
    return f"{_PAST}{layer}.key"


def past_value(layer: int) -> str:
    """Name of a layer's cached values."""
    return f"{_PAST}{layer}.value"


def is_past(name: str) -> bool:
    """Whether an input is part of the KV cache."""
    return name.startswith(_PAST)


def updated(past: str) -> str:
    """Name of the output in which the onnxruntime lowering returns a cache input, row added; both
    are bound to one buffer."""
    return _PRESENT + past.removeprefix(_PAST)


def logits(sub_position: int) -> str:
    """Name of the logits over sub-vocabulary k."""
    return f"{_LOGITS}{sub_position}"


def is_logits(name: str) -> bool:
    """Whether an output is the logits over a sub-vocabulary."""
    return name.startswith(_LOGITS)


def onnx_file(graph: str, lowering: str = PORTABLE) -> str:
    """File name of a graph."""
    return f"{graph}.onnx" if lowering == PORTABLE else f"{graph}.{lowering}.onnx"


def plan_file(graph: str, image_size: tuple[int, ...] | None = None) -> str:
    """File name of a graph's TensorRT plan; the tokenizer's are for one image size each."""
    return f"{graph}.plan" if image_size is None else f"{graph}.{size_text(image_size)}.plan"


def size_text(image_size: tuple[int, ...]) -> str:
    """An image size as file names have it: 256x256."""
    return "x".join(map(str, image_size))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: `dtype` is float32, int64 or compute (numpy's name, where it was read
    off a file); str dimensions are symbolic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def numpy_dtype(self, compute: str) -> str:
        """numpy's name of the element type, where compute is float32 or float16."""
        return compute if self.dtype == "compute" else self.dtype

    def fixed_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with the symbolic dimensions that `sizes` names."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class GraphIO:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def tokenizer_graphs(spec: ModelSpec) -> tuple[str, ...]:
    """Encoder, quantizer and decoder."""
    return (ENCODER, spec.tokenizer.quantizer, DECODER)


def graph_names(spec: ModelSpec) -> tuple[str, ...]:
    """The graphs that a bundle of this spec holds."""
    return tokenizer_graphs(spec) + (STEP_GRAPHS if spec.transformer else ())


def image_dimensions(spec: ModelSpec, size: tuple[int, ...]) -> dict[str, int]:
    """The symbolic dimensions that an image size fixes: pixels and latent grid."""
    axes = spec.tokenizer.axes
    latent = dict(zip(map(str.lower, axes), spec.grid_of_size(size), strict=True))
    return dict(zip(axes, size, strict=True)) | latent


def lowerings(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """The lowerings that a bundle of this spec holds, with the graphs of each."""
    found = {PORTABLE: graph_names(spec)}
    if spec.transformer and spec.transformer.head_size % FUSED_HEAD_SIZES == 0:
        found[ONNXRUNTIME] = STEP_GRAPHS
    return found


def graph_io(spec: ModelSpec, graph: str, lowering: str = PORTABLE) -> GraphIO:
    """Inputs and outputs of one graph in one lowering.

    Raises:
        SpecError: The spec has no such graph.
    """
    if graph not in graph_names(spec):
        raise SpecError(f"no graph {graph!r}: this model has {', '.join(graph_names(spec))}")
    if graph in tokenizer_graphs(spec):
        return _tokenizer_io(spec)[graph]
    assert spec.transformer is not None
    io = step_io(spec.transformer, graph)
    if lowering == PORTABLE:
        return io
    kept = tuple(tensor for tensor in io.outputs if tensor.name != PRESENT)
    whole = (replace(past, name=updated(past.name)) for past in io.inputs if is_past(past.name))
    return GraphIO(io.inputs, (*kept, *whole))  # every cache tensor whole, not its new rows alone


def step_io(spec: TransformerSpec, graph: str) -> GraphIO:
    """Inputs and outputs of a step graph in the portable lowering."""
    hidden = TensorSpec(HIDDEN, "float32", ("R", spec.width))
    outputs: tuple[TensorSpec, ...]
    if graph == INTER_STEP:
        layers, capacity = spec.inter_layers, spec.positions
        inputs = (
            TensorSpec(CLASS_ID, "int64", ("R",)),
            TensorSpec(TOKEN, "int64", ("R", spec.sub_tokens)),
            TensorSpec(POSITION, "int64", (1,)),
        )
        outputs = (hidden,)
    else:
        layers, capacity = spec.intra_layers, spec.sub_tokens
        inputs = (
            hidden,
            TensorSpec(SUB_TOKEN, "int64", ("R",)),
            TensorSpec(SUB_POSITION, "int64", (1,)),
        )
        outputs = tuple(
            TensorSpec(logits(k), "float32", ("R", size))
            for k, size in enumerate(spec.vocabularies)
        )
    past = tuple(
        TensorSpec(name(layer), "compute", ("R", spec.heads, capacity, spec.head_size))
        for layer in range(layers)
        for name in (past_key, past_value)
    )
    present = TensorSpec(PRESENT, "compute", (2 * layers, "R", spec.heads, 1, spec.head_size))
    return GraphIO(inputs + past, (*outputs, present))


def _tokenizer_io(spec: ModelSpec) -> dict[str, GraphIO]:
    axes, channels = spec.tokenizer.axes, spec.tokenizer.code_channels
    grid = tuple(axis.lower() for axis in axes)
    image = TensorSpec(IMAGE, "float32", ("B", 3, *axes))
    latent = TensorSpec(LATENT, "float32", ("B", channels, *grid))
    codes = TensorSpec(CODES, "float32", ("B", channels, *grid))
    tokens = TensorSpec(TOKENS, "int64", ("B", *grid, spec.sub_tokens))
    return {
        ENCODER: GraphIO((image,), (latent,)),
        spec.tokenizer.quantizer: GraphIO((latent,), (codes, tokens)),
        DECODER: GraphIO((codes,), (image,)),
    }
