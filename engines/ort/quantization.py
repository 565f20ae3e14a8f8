"""Integer weights for ONNX Runtime: matmuls over a weight become MatMulNBits.

Round to nearest in blocks along the inputs, symmetric, a float32 scale for each block: what ONNX
Runtime's own quantizer computes, one tensor at a time. Embedding tables stay float32: a position
reads K of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit.build import Quantization
from m2kit.engines.graph_files import MICROSOFT, WeightsFile
from m2kit.precision import Precision

_INT8_ACTIVATIONS = 4  # accuracy_level: activations are rounded to 8 bits too, block by block


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are stored.

    Attributes:
        bits: Of a weight, 8 or 4.
        block_size: Weights that share a scale.
        head_bits: Of a weight of the output heads.
    """

    bits: int
    block_size: int
    head_bits: int

    def record(self, matmuls: int) -> Quantization:
        """What engine.json says of that many quantized matmuls."""
        return Quantization(matmuls, self.bits, self.head_bits, self.block_size)


# Blocks of 128 at 8 bits: as near to float32 as 32, and a fifth faster. The heads have 1 % of the
# weights of a position and act on the logits directly, so they keep 8 bits.
SCHEMES = {Precision.INT8: Scheme(8, 128, 8), Precision.INT4: Scheme(4, 32, 8)}


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
    values: npt.NDArray[np.uint8] = np.clip(rounded, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | np.left_shift(values[..., 1::2], 4, dtype=np.uint8)
    return values, scales.ravel()


def quantize_graph(model: ir.Model, scheme: Scheme, weights: WeightsFile) -> int:
    """Turn every MatMul over a weight into MatMulNBits; returns how many there were.

    Args:
        model: A step graph; changed.
        scheme: How.
        weights: Where the quantized weights go.
    """
    graph = model.graph
    outputs = set(graph.outputs)
    found = 0
    for node in list(graph):
        source = node.inputs[1].const_value if len(node.inputs) == 2 and node.inputs[1] else None
        if node.op_type != "MatMul" or not isinstance(source, ir.ExternalTensor):
            continue
        is_head = node.outputs[0] in outputs
        bits = scheme.head_bits if is_head else scheme.bits
        _replace(graph, node, source, bits, scheme.block_size, weights)
        found += 1
    if found:
        graph.opset_imports[MICROSOFT] = 1
    return found


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    source: ir.ExternalTensor,
    bits: int,
    block_size: int,
    weights: WeightsFile,
) -> None:
    size_in, size_out = source.shape.numpy()
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
