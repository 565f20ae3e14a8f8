"""onnxruntime-gpu for tests: the CPU provider poses as CUDA, on the memory and streams of a
CudaDouble.

A session computes at the addresses it is bound to, after the work that waits on the stream it was
given; without one it waits for nothing. An input that is bound on the host is copied to the GPU
there and then, and never again, as a real GPU showed. An output that is bound on the host travels
at every run: `copied` counts it. Everything else is the real package's.
"""

from __future__ import annotations

import ctypes
import importlib
import types
from collections import Counter

import numpy as np

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def make_onnxruntime(cuda):
    """A module such as `import onnxruntime` gives where onnxruntime-gpu is installed.

    Its `copied` counts bytes that travelled between host and GPU, by name of input or output.
    """
    real = importlib.import_module("onnxruntime")
    module = types.ModuleType("onnxruntime")
    module.__dict__.update({n: v for n, v in vars(real).items() if not n.startswith("__")})
    module.__version__ = real.__version__
    module.copied = copied = Counter()

    class IOBinding:
        def __init__(self, session):
            self.real, self.travelling, self.taken = session.real.io_binding(), {}, []

        def bind_input(self, name, device, device_id, element_type, shape, address):
            if device == "cpu":
                size = int(np.prod(shape)) * np.dtype(element_type).itemsize
                taken = (ctypes.c_uint8 * size).from_buffer_copy(
                    (ctypes.c_uint8 * size).from_address(address)
                )
                self.taken.append(taken)
                address = ctypes.addressof(taken)
            self._bind(self.real.bind_input, name, device, device_id, element_type, shape, address)

        def bind_output(self, *bound):
            self._bind(self.real.bind_output, *bound)

        def _bind(self, bind, name, device, device_id, element_type, shape, address):
            size = int(np.prod(shape)) * np.dtype(element_type).itemsize
            if device == "cuda":
                cuda.view(address, size)
            elif bind == self.real.bind_output:
                self.travelling[name] = size
            bind(name, "cpu", 0, element_type, shape, address)

    class InferenceSession:
        def __init__(self, path, options, providers):
            ((_, self._options),) = providers
            self.real = real.InferenceSession(path, options, providers=[CPU])
            if "user_compute_stream" in self._options:
                cuda.users[self] = int(self._options["user_compute_stream"])

        def get_providers(self):
            return [CUDA, CPU]

        def io_binding(self):
            return IOBinding(self)

        def run(self, names, feeds):
            outputs = self.real.run(names, feeds)
            arrays = zip([*feeds, *names], [*feeds.values(), *outputs], strict=True)
            copied.update({name: array.nbytes for name, array in arrays})
            return outputs

        def run_with_iobinding(self, binding):
            if "user_compute_stream" in self._options:
                cuda.stream(int(self._options["user_compute_stream"])).run()
            copied.update(binding.travelling)
            self.real.run_with_iobinding(binding.real)

    def session(path, options, providers):
        name = providers[0] if isinstance(providers[0], str) else providers[0][0]
        kind = InferenceSession if name == CUDA else real.InferenceSession
        return kind(path, options, providers=providers)

    for part in (IOBinding, InferenceSession):
        for name in vars(part):
            if not name.startswith("_") and name != "real":
                assert hasattr(getattr(real, part.__name__), name), f"{part.__name__}.{name}"
    module.InferenceSession = session
    module.get_available_providers = lambda: [CUDA, CPU]
    return module
