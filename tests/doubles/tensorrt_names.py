"""Prints the names of TensorRT's Python API that the double stands in for: how
tensorrt_names.json was made, one version at a time.

    pip download --no-deps tensorrt_cu12_bindings==10.3.0   # and unpack the wheel
    LD_LIBRARY_PATH=STANDINS python tensorrt_names.py tensorrt_bindings/tensorrt.so

STANDINS holds empty libnvinfer.so.10, libnvonnxparser.so.10 and libnvinfer_plugin.so.10 that
define the ten C functions the bindings link to: names can be listed where nothing can be run.
"""

import importlib.util
import json
import sys

CLASSES = (
    "ILogger", "Logger", "DataType", "TensorIOMode", "ExecutionContextAllocationStrategy",
    "BuilderFlag", "NetworkDefinitionCreationFlag", "HardwareCompatibilityLevel",
    "MemoryPoolType", "OnnxParserFlag", "ProfilingVerbosity", "DeviceType", "Builder",
    "OnnxParser", "INetworkDefinition", "IBuilderConfig", "ITensor", "ILayer",
    "ITimingCache", "IOptimizationProfile", "Runtime", "ICudaEngine", "IExecutionContext",
)  # fmt: skip


def names_of(module):
    """Class -> its public names, in one string; under "" the functions."""
    names = {
        name: " ".join(n for n in dir(getattr(module, name)) if not n.startswith("_"))
        for name in CLASSES
    }
    return names | {"": " ".join(n for n in ("init_libnvinfer_plugins",) if hasattr(module, n))}


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
    tensorrt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tensorrt)
    print(json.dumps(names_of(tensorrt), indent=1))
