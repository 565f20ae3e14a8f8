"""A convolution as a model of one node, run as ONNX Runtime runs an engine's graphs: what a
benchmark measures a tokenizer by.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from m2kit.families.convolution import Convolution
from m2kit.runtime.bench.convolution import Run
from m2kit.runtime.ort.backend import OnnxRuntimeBackend

_OPSET, _IR_VERSION = 18, 10


def open_convolution(backend: OnnxRuntimeBackend, layer: Convolution, pictures: int) -> Run:
    """What runs a layer of stride 1, with random weights and zeros around it, on noise
    (pictures, channels_in, *size), in the backend's threads; float32."""
    axes, generator = len(layer.size), np.random.default_rng(0)
    kernel = [layer.kernel] * axes
    shape = (layer.channels_out, layer.channels_in, *kernel)
    weights = generator.standard_normal(shape, np.float32) / layer.channels_in
    shapes = [(pictures, n, *layer.size) for n in (layer.channels_in, layer.channels_out)]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, found)
        for name, found in zip("xy", shapes, strict=True)
    )
    pads = [layer.kernel // 2] * 2 * axes
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=kernel, pads=pads)
    initializers = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph([node], "convolution", [given], [made], initializers)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    session = backend.ort.InferenceSession(
        model.SerializeToString(), backend.options(), providers=["CPUExecutionProvider"]
    )
    noise = {"x": generator.standard_normal(shapes[0], np.float32)}
    return lambda: session.run(["y"], noise)
