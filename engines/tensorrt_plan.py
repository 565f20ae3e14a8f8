"""Typed graph -> TensorRT plan: the only module that touches TensorRT's builder.

Written for TensorRT-RTX (package tensorrt-rtx), which parses and builds on a machine without a
GPU. Differences between versions are found by attribute. Each plan is built in a process of its
own, with addresses that are the same every time: the builder orders some tables by address, and
the same graph then gives the same bytes. Its memory goes with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from m2kit.contract import GraphIO
from m2kit.errors import BackendError, InputError, M2KitError, require

_ERRORS_SHOWN = 3
# All that a plan's process gets of the environment: the rest would only shift its memory.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME")
_ADDR_NO_RANDOMIZE = 0x0040000  # of personality(2)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_COMPUTING = (  # layer types whose precision matters; the others move values or shapes
    "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "MATRIX_MULTIPLY", "NORMALIZATION", "REDUCE",
    "SOFTMAX", "UNARY",
)  # fmt: skip
_FLOATS = ("FLOAT", "HALF", "BF16")


def load_tensorrt_rtx() -> ModuleType:
    """The tensorrt_rtx module.

    Raises:
        BackendError: The package is not installed.
    """
    return require("tensorrt_rtx", extra="rtx", what="the tensorrt-rtx backend")


def targets(trt: ModuleType, capabilities: Sequence[str]) -> list[Any]:
    """TensorRT's values of compute capabilities such as "8.6".

    Raises:
        InputError: One that this TensorRT cannot build for.
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": getattr(trt.ComputeCapability, name)
        for name in dir(trt.ComputeCapability)
        if name.startswith("SM")
    }
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        names = sorted(known, key=lambda name: tuple(map(int, name.split("."))))
        raise InputError(
            f"this TensorRT-RTX ({trt.__version__}) has no compute capability "
            f"{', '.join(unknown)}; it builds for {', '.join(names)}"
        )
    return [known[capability] for capability in capabilities]


def build_plan(
    graph: Path,
    plan: Path,
    io: GraphIO,
    sizes: Mapping[str, int],
    capabilities: Sequence[str],
) -> dict[str, int]:
    """Parse a typed graph and build it, every shape static, in a process of its own.

    Args:
        graph: The ONNX file; its precision is taken as it is.
        plan: Where to write the plan.
        io: The graph's contract.
        sizes: Value of each symbolic dimension (R, B, H, W, h, w).
        capabilities: Compute capabilities of the GPUs it is for.

    Returns:
        "TYPE PRECISION" -> how many layers of the parsed network compute that way.

    Raises:
        BackendError: TensorRT does not take the graph or a compute capability, with its own
            reasons; or its process was killed.
    """
    request = {
        "graph": os.path.relpath(graph, plan.parent),
        "plan": plan.name,
        "shapes": [[sizes.get(str(s), s) for s in tensor.shape] for tensor in io.inputs],
        "capabilities": list(capabilities),
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=plan.parent,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        | {"PYTHONHASHSEED": "0"},
        preexec_fn=_settle,
    )
    if done.returncode < 0:
        raise BackendError(
            f"building {graph.stem} was killed by signal {-done.returncode}: probably not enough "
            "memory; close other programs or build on a larger machine"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BackendError(f"building {graph.stem} failed: {reason}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise BackendError(answer["error"])
    layers: dict[str, int] = answer["layers"]
    return layers


def _settle() -> None:
    """In the child, before it becomes Python: fixed addresses, and death with its parent."""
    libc = ctypes.CDLL(None)
    libc.personality(_ADDR_NO_RANDOMIZE)  # where it is not permitted, only the bytes may differ
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _build(request: dict[str, Any]) -> dict[str, int]:
    """What `build_plan` has its process do."""
    trt, graph = load_tensorrt_rtx(), Path(request["graph"])
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _refused("cannot parse", graph, reasons or log.errors)
    for index, shape in enumerate(request["shapes"]):
        network.get_input(index).shape = shape
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 islands mean float32
    chosen = targets(trt, request["capabilities"])
    config.num_compute_capabilities = len(chosen)
    for index, capability in enumerate(chosen):
        config.set_compute_capability(capability, index)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise _refused("cannot build", graph, log.errors)
    Path(request["plan"]).write_bytes(data)
    return _layers(network)


def _network_flags(trt: ModuleType) -> int:
    """Strongly typed where that is a choice: precision is what the graph says."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _layers(network: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in _COMPUTING and layer.get_input(0).dtype.name in _FLOATS:
            counts[f"{layer.type.name} {layer.get_input(0).dtype.name}"] += 1
    return dict(sorted(counts.items()))


def _log(trt: ModuleType) -> Any:
    """A TensorRT logger that keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _refused(what: str, graph: Path, reasons: Sequence[str]) -> BackendError:
    shown = "; ".join(" ".join(reason.split()) for reason in reasons[:_ERRORS_SHOWN])
    return BackendError(f"TensorRT-RTX {what} {graph.stem}: {shown or 'no reason given'}")


if __name__ == "__main__":
    try:
        answer: dict[str, Any] = {"layers": _build(json.loads(sys.argv[1]))}
    except M2KitError as refusal:
        answer = {"error": str(refusal)}
    print(json.dumps(answer))
