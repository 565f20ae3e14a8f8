"""TensorRT for tests: the part of its Python API that m2kit and polygraphy call, over ONNX Runtime.

A "plan" holds the ONNX graph it was made of; running it means running that graph on the values at
the addresses the context was given, in the memory of a CudaDouble. What TensorRT forbids is
refused: unset, misaligned or freed addresses, another version or GPU, a first run inside a
capture. tests/doubles/tensorrt_names.json holds the real API's names; a test compares.
"""

from __future__ import annotations

import enum
import hashlib
import io
import json
import os
import types
import weakref

import numpy as np

MAGIC = b"tensorrt double\n"
SCRATCH = 1000  # bytes of working memory; not a multiple of the alignment, on purpose
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}
_LAYERS = {
    "MatMul": "MATRIX_MULTIPLY", "Conv": "CONVOLUTION", "Softmax": "SOFTMAX", "Sqrt": "UNARY",
    "InstanceNormalization": "NORMALIZATION", "ReduceMean": "REDUCE", "Sigmoid": "ACTIVATION",
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), "ELEMENTWISE"),
}  # fmt: skip


class Misuse(AssertionError):
    """What TensorRT leaves undefined."""


def _enum(name, **members):
    return enum.Enum(name, members)


class _IntEnum(enum.IntEnum):
    pass


def make_tensorrt(version="10.3.0", product="tensorrt", cuda=None, gpu=("Test GPU", "8.6")):
    """A module such as `import tensorrt` gives.

    Args:
        version: Which TensorRT it pretends to be; names that came later or went are absent.
        product: tensorrt or tensorrt_rtx.
        cuda: The CudaDouble whose memory it computes in; None only builds.
        gpu: Name and compute capability of the GPU it builds for and runs on.
    """
    module = types.ModuleType(product)
    major, minor = (int(part) for part in version.split(".")[:2])
    newer = major >= 11
    module.__version__ = version

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class DataType(enum.Enum):
        FLOAT, HALF, INT64, INT32, BOOL = range(5)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    strategy = _enum(
        "ExecutionContextAllocationStrategy", STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2
    )
    creation = {"STRONGLY_TYPED": 1} | ({} if newer else {"EXPLICIT_BATCH": 0})
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation)
    flags = {"TF32": 0, "VERSION_COMPATIBLE": 1, "DEBUG": 2}
    if product == "tensorrt_rtx":
        flags["REQUIRE_USER_ALLOCATION"] = 4
    elif not newer:
        flags["FP16"] = 3
    module.BuilderFlag = enum.IntEnum("BuilderFlag", flags)
    levels = {"NONE": 0, "AMPERE_PLUS": 1}
    if newer or minor >= 9:
        levels["SAME_COMPUTE_CAPABILITY"] = 2
    module.HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", levels)
    module.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0, "TACTIC_DRAM": 1})
    module.OnnxParserFlag = enum.IntEnum("OnnxParserFlag", {"NATIVE_INSTANCENORM": 0})
    module.ProfilingVerbosity = _enum("ProfilingVerbosity", LAYER_NAMES_ONLY=0, DETAILED=1)
    module.DeviceType = _enum("DeviceType", GPU=0, DLA=1)
    module.ILogger = module.Logger = ILogger
    module.DataType, module.TensorIOMode = DataType, TensorIOMode
    module.ExecutionContextAllocationStrategy = strategy
    module.init_libnvinfer_plugins = lambda logger, namespace: True
    module.built = []  # what build_serialized_network was asked, for tests

    # --- building

    class ITensor:
        def __init__(self, name, shape, dtype):
            self.name, self.shape, self.dtype = name, shape, dtype
            self.is_shape_tensor = False

    class ILayer:
        def __init__(self, kind, dtype):
            self.type, self._dtype = types.SimpleNamespace(name=kind), dtype

        def get_input(self, index):
            return ITensor("in", (), self._dtype)

    class INetworkDefinition:
        def __init__(self, created_with):
            self.flags = created_with
            self.model, self.inputs, self.layers = None, [], []

        @property
        def num_inputs(self):
            return len(self.inputs)

        @property
        def num_layers(self):
            return len(self.layers)

        def get_input(self, index):
            return self.inputs[index]

        def get_layer(self, index):
            return self.layers[index]

        def get_flag(self, flag):
            return bool(self.flags & 1 << int(flag))

        def __iter__(self):
            return iter(self.layers)

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self.flags, self._errors = network, 0, []

        @property
        def num_errors(self):
            return len(self._errors)

        def get_error(self, index):
            return self._errors[index]

        def parse_from_file(self, path):
            import onnx

            if not newer and product == "tensorrt":
                assert self._network.get_flag(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            model = onnx.load(path)
            known = onnx.shape_inference.infer_shapes(model).graph
            dtypes = {v.name: v.type.tensor_type.elem_type for v in known.value_info}
            dtypes |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
            dtypes |= {v.name: v.data_type for v in model.graph.initializer}
            network = self._network
            network.model = model
            network.inputs = [
                ITensor(v.name, _dims(v), _data_type(v.type.tensor_type.elem_type))
                for v in model.graph.input
            ]
            for node in model.graph.node:
                if node.op_type == "Bernoulli":
                    self._errors.append(f"no importer for {node.op_type}")
                found = [dtypes[name] for name in node.input if name in dtypes]
                kind = _LAYERS.get(node.op_type, "SHUFFLE")
                network.layers.append(ILayer(kind, _data_type(found[0] if found else 1)))
            return not self._errors

    def _data_type(elem_type):
        return {1: DataType.FLOAT, 10: DataType.HALF, 7: DataType.INT64}.get(
            elem_type, DataType.BOOL
        )

    class ITimingCache:
        def __init__(self, data):
            self.data = data

        def serialize(self):
            return memoryview(self.data)

        def combine(self, other, ignore_mismatch):
            self.data = self.data + other.data
            return True

    class IOptimizationProfile:
        def set_shape(self, name, smallest, usual, largest):
            assert -1 not in (*smallest, *usual, *largest), f"{name} is not static"

    class IBuilderConfig:
        def __init__(self):
            self.flags = {int(module.BuilderFlag.TF32)}  # on by default
            self.limits, self._cache, self.targets = {}, None, []
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = module.HardwareCompatibilityLevel.NONE
            self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.max_aux_streams, self.DLA_core = -1, -1
            self.default_device_type = module.DeviceType.GPU
            self.num_optimization_profiles = 0

        def set_flag(self, flag):
            self.flags.add(int(flag))

        def clear_flag(self, flag):
            self.flags.discard(int(flag))

        def get_flag(self, flag):
            return int(flag) in self.flags

        def add_optimization_profile(self, profile):
            self.num_optimization_profiles += 1

        def set_memory_pool_limit(self, pool, size):
            self.limits[pool.name] = size

        def get_memory_pool_limit(self, pool):
            return self.limits.get(pool.name, 1 << 34)

        def create_timing_cache(self, data):
            return ITimingCache(bytes(data))

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags=0):
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            if os.environ.get("TENSORRT_DOUBLE_FAILS"):
                self.logger.log(ILogger.ERROR, os.environ["TENSORRT_DOUBLE_FAILS"])
                return None
            shapes = {tensor.name: list(tensor.shape) for tensor in network.inputs}
            assert all(size > 0 for shape in shapes.values() for size in shape), "not static"
            header = {
                "version": version,
                "gpu": list(gpu),
                "targets": config.targets,
                "portable": int(config.hardware_compatibility_level) > 0,
                "version_compatible": config.get_flag(module.BuilderFlag.VERSION_COMPATIBLE),
                "shapes": shapes,
                "outputs": _output_shapes(network.model, shapes),
            }
            asked = {
                "flags": sorted(f.name for f in module.BuilderFlag if config.get_flag(f)),
                "limits": config.limits,
                "level": config.builder_optimization_level,
                "hardware": config.hardware_compatibility_level.name,
                "streams": config.max_aux_streams,
                "timing_cache": config.get_timing_cache().data.decode(),
            }
            module.built.append(asked)
            config.get_timing_cache().data += b"timed;"
            data = json.dumps(header | {"asked": asked}).encode()
            return MAGIC + len(data).to_bytes(8, "little") + data + _frozen(network.model, shapes)

    # --- running

    class ICudaEngine:
        def __init__(self, logger, header, model):
            self._log, self._header, self._model = logger, header, model
            session = _session(model)
            self._session = session
            self._tensors = {
                entry.name: (mode, tuple(shapes[entry.name]), _named(entry.type))
                for mode, entries, shapes in (
                    (TensorIOMode.INPUT, session.get_inputs(), header["shapes"]),
                    (TensorIOMode.OUTPUT, session.get_outputs(), header["outputs"]),
                )
                for entry in entries
            }
            self.device_memory_size_v2 = SCRATCH

        @property
        def num_io_tensors(self):
            return len(self._tensors)

        def get_tensor_name(self, index):
            return list(self._tensors)[index]

        def get_tensor_mode(self, name):
            return self._tensors[name][0]

        def get_tensor_shape(self, name):
            return self._tensors[name][1]

        def get_tensor_dtype(self, name):
            return DataType[self._tensors[name][2]]

        def create_execution_context(self, allocation=strategy.STATIC):
            assert allocation is strategy.USER_MANAGED, "all memory is the caller's"
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine):
            self._engine = weakref.ref(engine)  # which must outlive it
            self._addresses, self._scratch, self._warm = {}, None, False

        @property
        def engine(self):
            engine = self._engine()
            if engine is None:
                raise Misuse("the engine was released before its context")
            return engine

        def __del__(self):
            if self._engine() is None:
                cuda.misused.append("an engine was released before its context")

        def set_device_memory(self, memory, size):
            cuda.view(memory, size)
            if memory % 256 or size < SCRATCH:
                raise Misuse("working memory misaligned or too small")
            self._scratch = (memory, size)

        def set_tensor_address(self, name, memory):
            if name not in self.engine._tensors or memory % 256:
                self.engine._log.log(ILogger.ERROR, f"address of {name} is not 256-byte aligned")
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream):
            engine = self.engine
            unset = sorted(set(engine._tensors) - set(self._addresses))
            if unset or self._scratch is None:
                engine._log.log(ILogger.ERROR, f"no address was set for {unset or 'scratch'}")
                return False
            if cuda.stream(stream).captured is not None and not self._warm:
                engine._log.log(ILogger.ERROR, "the first run allocates and cannot be captured")
                return False
            self._warm = True
            cuda.executions += 1
            cuda.queue(stream, lambda: self._compute(engine))
            return True

        def _compute(self, engine):
            feeds, outputs = {}, {}
            for name, (mode, shape, dtype) in engine._tensors.items():
                size = int(np.prod(shape)) * np.dtype(_TYPES[dtype]).itemsize
                memory = cuda.view(self._addresses[name], size)
                if mode is TensorIOMode.INPUT:
                    feeds[name] = memory.copy().view(_TYPES[dtype]).reshape(shape)
                else:
                    outputs[name] = memory
            cuda.view(*self._scratch)[:] = 0xAB
            for memory in outputs.values():
                memory[:] = 0xFF
            for name, value in zip(outputs, engine._session.run(list(outputs), feeds), strict=True):
                outputs[name][:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    if product == "tensorrt_rtx":
        names = {"SM86": 0, "SM89": 1}
        module.ComputeCapability = enum.IntEnum("ComputeCapability", names)

        def set_compute_capability(self, capability, index):
            self.targets.append(f"{capability.name[2:-1]}.{capability.name[-1]}")

        class IRuntimeCache:
            """Kernels by the plan they are of; `module.compiled` lists those compiled anew."""

            def __init__(self):
                self._kernels = {}

            def _environment(self):
                return [version, list(gpu), cuda.driver]

            def serialize(self):
                return memoryview(json.dumps([self._environment(), self._kernels]).encode())

            def deserialize(self, blob):
                environment, kernels = json.loads(bytes(blob))
                if environment != self._environment():
                    return False
                self._kernels = kernels
                return True

        class IRuntimeConfig:
            def __init__(self):
                self.strategy = self.cache = None

            def set_execution_context_allocation_strategy(self, strategy):
                self.strategy = strategy

            def create_runtime_cache(self):
                return IRuntimeCache()

            def set_runtime_cache(self, cache):
                self.cache = cache
                return True

        def create_execution_context(self, config):
            plan = hashlib.sha256(self._model).hexdigest()
            if plan not in config.cache._kernels:
                module.compiled.append(plan)
                config.cache._kernels[plan] = "kernels"
            assert config.strategy is strategy.USER_MANAGED, "all memory is the caller's"
            return IExecutionContext(self)

        module.compiled = []
        module.IRuntimeCache, module.IRuntimeConfig = IRuntimeCache, IRuntimeConfig
        ICudaEngine.create_runtime_config = lambda self: IRuntimeConfig()
        ICudaEngine.create_execution_context = create_execution_context
        IBuilderConfig.num_compute_capabilities = 0
        IBuilderConfig.set_compute_capability = set_compute_capability
        IExecutionContext.is_stream_capturable = lambda self, stream: True

    class Runtime:
        def __init__(self, logger):
            if module.__dict__.setdefault("logger", logger) is not logger:
                raise Misuse("TensorRT keeps the first logger of a process, others hear nothing")
            assert cuda is not None and cuda.driver and cuda.devices, "a segmentation fault"
            self._log, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, data):
            data = bytes(data)
            if not data.startswith(MAGIC):
                self._log.log(ILogger.ERROR, "magic tag does not match")
                return None
            start = len(MAGIC) + 8
            end = start + int.from_bytes(data[len(MAGIC) : start], "little")
            header = json.loads(data[start:end])
            compatible = header["version_compatible"] and self.engine_host_code_allowed
            if header["version"] != version and not compatible:
                self._log.log(ILogger.ERROR, f"version tag {header['version']} is not {version}")
                return None
            if header["targets"]:
                fits = gpu[1] in header["targets"]
            else:
                fits = header["gpu"] == list(gpu) or header["portable"]
            if not fits:
                self._log.log(ILogger.ERROR, "the plan is for another GPU")
                return None
            return ICudaEngine(self._log, header, data[end:])

    for part in (
        Builder, OnnxParser, INetworkDefinition, IBuilderConfig, ITensor, ILayer, ITimingCache,
        IOptimizationProfile, Runtime, ICudaEngine, IExecutionContext,
    ):  # fmt: skip
        setattr(module, part.__name__, part)
    if cuda is not None:
        cuda.executions = 0
    return module


def _dims(value):
    return tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)


def _named(ort_type):
    names = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
    return names[ort_type]


def _session(model):
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def _frozen(model, shapes):
    """The model's bytes, weights inside."""
    import onnx

    for value in model.graph.input:
        for dimension, size in zip(
            value.type.tensor_type.shape.dim, shapes[value.name], strict=True
        ):
            dimension.dim_value = size
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()


def _output_shapes(model, shapes):
    """Static shapes of the outputs: symbolic names take the inputs' values."""
    known = {}
    for value in model.graph.input:
        for dimension, size in zip(
            value.type.tensor_type.shape.dim, shapes[value.name], strict=True
        ):
            if dimension.dim_param:
                known[dimension.dim_param] = size
    if "h" in known:  # the decoder's image, and back
        known.setdefault("H", 0)
    result = {}
    for value in model.graph.output:
        result[value.name] = [
            d.dim_value or known.get(d.dim_param, 0) for d in value.type.tensor_type.shape.dim
        ]
    if any(0 in shape for shape in result.values()):
        feeds = {
            value.name: np.zeros(shapes[value.name], _numpy(value)) for value in model.graph.input
        }
        outputs = _session(model.SerializeToString()).run(list(result), feeds)
        result = {name: list(array.shape) for name, array in zip(result, outputs, strict=True)}
    return result


def _numpy(value):
    return {1: np.float32, 10: np.float16, 7: np.int64}[value.type.tensor_type.elem_type]
