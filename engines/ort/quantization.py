"""Integer weights for ONNX Runtime: matmuls over a weight become MatMulNBits.

Symmetric, a float32 scale for each block along the inputs. At 8 bits rounded to the nearest, one
tensor at a time, as ONNX Runtime's own quantizer does; at 4 bits by what the weights do, too
(rounding.py), but for the heads. Embedding tables stay float32: a position reads K of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit import contract
from m2kit.build import BuildOptions, Quantization, Rounding
from m2kit.contract import ONNXRUNTIME, PORTABLE
from m2kit.engines.building import Job
from m2kit.engines.graph_files import MICROSOFT, WeightsFile, load_graph
from m2kit.engines.ort.moments import Read, draw_moments
from m2kit.engines.ort.rounding import round_by_moments
from m2kit.precision import Precision

_INT8_ACTIVATIONS = 4  # accuracy_level: activations are rounded to 8 bits too, block by block
_MOMENTS_BYTES = 3 * 2**30  # held at once: all of AR-L's 2.8 GB; AR-XL's come in two parts


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are stored.

    Attributes:
        bits: Of a weight, 8 or 4.
        block_size: Weights that share a scale.
        head_bits: Of a weight of the output heads, which are rounded to the nearest.
        rounding: How all other weights are rounded.
    """

    bits: int
    block_size: int
    head_bits: int
    rounding: Rounding

    def record(self, matmuls: int) -> Quantization:
        """What engine.json says of that many quantized matmuls."""
        return Quantization(matmuls, self.bits, self.head_bits, self.block_size, self.rounding)


# Blocks of 128 at 8 bits: as near to float32 as 32, and a fifth faster; what is lost there is lost
# by rounding activations. The heads have 1 % of the weights of a position and act on the logits
# directly, so they keep 8 bits.
SCHEMES = {
    Precision.INT8: Scheme(8, 128, 8, "nearest"),
    Precision.INT4: Scheme(4, 128, 8, "gptq"),
}


def scheme_of(precision: Precision, options: BuildOptions) -> Scheme | None:
    """How an engine of this precision stores its weights; None is as floats."""
    scheme = SCHEMES.get(precision)
    if scheme is None or options.block_size is None:
        return scheme
    return replace(scheme, block_size=options.block_size)


@dataclass(frozen=True, slots=True)
class Linear:
    """A matmul over a weight.

    Attributes:
        node: It.
        source: The weight, (in, out) float32.
        is_head: Whether it computes logits.
    """

    node: ir.Node
    source: ir.ExternalTensor
    is_head: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        size_in, size_out = self.source.shape.numpy()
        return size_in, size_out


def linears(model: ir.Model) -> Iterator[Linear]:
    """Every matmul over a weight of a step graph; nodes may be replaced meanwhile."""
    outputs = set(model.graph.outputs)
    for node in list(model.graph):
        source = node.inputs[1].const_value if len(node.inputs) == 2 and node.inputs[1] else None
        if node.op_type == "MatMul" and isinstance(source, ir.ExternalTensor):
            yield Linear(node, source, node.outputs[0] in outputs)


def quantize_blocks(
    weight: npt.NDArray[np.float32], bits: int, block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Quantize a matmul's weight.

    Args:
        weight: (in, out) float32.
        bits: 8 or 4.
        block_size: Inputs that share a scale; the last block is filled up with zeros.

    Returns:
        (out, blocks, block_size * bits / 8) uint8, zero at 2^(bits-1), two 4-bit values a byte,
        the first in the low half; and (out * blocks) float32 scales.
    """
    size_in, size_out = weight.shape
    count = -(-size_in // block_size)
    padded: npt.NDArray[np.float32] = np.zeros((size_out, count * block_size), np.float32)
    padded[:, :size_in] = weight.T
    blocks = padded.reshape(size_out, count, block_size)
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    # The value of largest magnitude becomes -half exactly.
    scales: npt.NDArray[np.float32] = largest / np.float32(-half)
    reciprocal = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    rounded = np.floor(blocks * reciprocal + np.float32(half + 0.5))
    return _packed(np.clip(rounded, 0, 2 * half - 1).astype(np.uint8), bits), scales.ravel()


def quantize_by_moments(
    weight: npt.NDArray[np.float32],
    moments: npt.NDArray[np.float32],
    bits: int,
    block_size: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The same, rounded so that outputs change least over inputs X of which `moments` (in, in)
    float32 are X^T X."""
    integers, scales = round_by_moments(weight, moments, bits, block_size)
    size_out, count, half = weight.shape[1], len(scales), 2 ** (bits - 1)
    values = np.full((size_out, count * block_size), half, np.uint8)
    values[:, : len(weight)] = integers.T + half
    return _packed(values.reshape(size_out, count, block_size), bits), scales.T.ravel()


def _packed(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return values
    return values[..., 0::2] | np.left_shift(values[..., 1::2], 4, dtype=np.uint8)


def round_by_use(job: Job, scheme: Scheme, weights: WeightsFile) -> None:
    """Write the rounded weights of the bundle's steps, but for the heads, into the weights file,
    where `quantize_graph` finds them."""
    readers: dict[Read, list[Linear]] = {}
    for graph in contract.STEP_GRAPHS:
        lowering = ONNXRUNTIME if graph in job.source.fused else PORTABLE
        model = load_graph(job.bundle / job.source.graph_file(lowering, graph))
        for linear in linears(model):
            given = linear.node.inputs[0]
            if not linear.is_head and given is not None:
                readers.setdefault((graph, str(given.name)), []).append(linear)
    groups = _groups({read: found[0].shape[0] for read, found in readers.items()})
    for number, wanted in enumerate(groups, 1):
        part = f", part {number} of {len(groups)}" if len(groups) > 1 else ""
        stage = f"drawing images to learn what the weights do{part}"
        moments = draw_moments(job.bundle, job.source, wanted, job.begin, stage)
        stage = f"rounding weights by what they do{part}"
        advance = job.begin(stage, sum(len(readers[read]) for read in wanted))
        for read in wanted:
            for linear in readers[read]:
                source = linear.source
                values, scales = quantize_by_moments(
                    source.numpy(), moments[read], scheme.bits, scheme.block_size
                )
                source.release()
                for suffix, array in (("values", values), ("scales", scales)):
                    weights.write((source.name, scheme.bits, suffix), partial(np.asarray, array))
                advance(1)
            del moments[read]


def _groups(sizes: dict[Read, int]) -> list[dict[Read, int]]:
    """What is read, in order, parted so that the moments of each part are held at once."""
    groups: list[dict[Read, int]] = []
    left = 0
    for read, size in sizes.items():
        needed = 4 * size**2
        if not groups or needed > left:
            groups.append({})
            left = _MOMENTS_BYTES
        groups[-1][read] = size
        left -= needed
    return groups


def quantize_graph(model: ir.Model, scheme: Scheme, weights: WeightsFile) -> int:
    """Turn every MatMul over a weight into MatMulNBits; returns how many there were.

    Args:
        model: A step graph; changed.
        scheme: How.
        weights: Where the quantized weights go; what is not there is rounded to the nearest.
    """
    graph = model.graph
    found = 0
    for linear in linears(model):
        bits = scheme.head_bits if linear.is_head else scheme.bits
        _replace(graph, linear, bits, scheme.block_size, weights)
        found += 1
    if found:
        graph.opset_imports[MICROSOFT] = 1
    return found


def _replace(
    graph: ir.Graph, linear: Linear, bits: int, block_size: int, weights: WeightsFile
) -> None:
    node, source, (size_in, size_out) = linear.node, linear.source, linear.shape
    blocks = -(-size_in // block_size)
    made: list[npt.NDArray[np.float32]] = []

    def packed() -> npt.NDArray[np.uint8]:
        values, scales = quantize_blocks(source.numpy(), bits, block_size)
        source.release()
        made.append(scales)
        return values

    shapes = ((size_out, blocks, block_size * bits // 8), (size_out * blocks,))
    quantized, scales = (
        ir.Value(name=f"{source.name}.{suffix}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
        for suffix, dtype, shape in zip(
            (f"int{bits}", "scales"), (ir.DataType.UINT8, ir.DataType.FLOAT), shapes, strict=True
        )
    )
    weights.store(quantized, (source.name, bits, "values"), packed)
    weights.store(scales, (source.name, bits, "scales"), lambda: made[0])
    for value in (quantized, scales):
        if str(value.name) not in graph.initializers:
            graph.register_initializer(value)
    stored = [graph.initializers[str(value.name)] for value in (quantized, scales)]
    taken, weight, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert weight is not None
    new = ir.node(
        "MatMulNBits",
        [taken, *stored],
        domain=MICROSOFT,
        attributes={
            "K": size_in,
            "N": size_out,
            "bits": bits,
            "block_size": block_size,
            "accuracy_level": _INT8_ACTIVATIONS,
        },
        outputs=[ir.Value(name=result.name, type=result.type, shape=result.shape)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, new)
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, new.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[index] = new.outputs[0]
    graph.remove(node, safe=True)
    if not list(weight.uses()):
        del graph.initializers[str(weight.name)]
