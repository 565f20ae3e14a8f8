"""Typed graph -> TensorRT plan, in a process of its own: the only module that touches TensorRT's
builder, through polygraphy's loaders, for the products of runtime/tensorrt_library.py.

A process per plan, because its memory goes with it, and because its addresses can be the same
every time: TensorRT-RTX orders some tables by address, and the same graph then gives the same
bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from m2kit.contract import GraphIO
from m2kit.errors import BackendError, InputError, M2KitError, require
from m2kit.runtime.target import AMPERE, SAME_CAPABILITY
from m2kit.runtime.tensorrt_library import (
    PRODUCTS,
    TENSORRT_RTX,
    load_tensorrt,
    out_of_memory,
)

_ERRORS_SHOWN = 3
# All that a TensorRT-RTX plan's process gets of the environment: the rest would shift its memory.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME")
_RTX_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # read by polygraphy when it is imported
_MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGABRT)  # the system's, and a failed allocation's
_libc = ctypes.CDLL(None)  # looked up here: little is safe between fork and exec
_personality, _prctl = _libc.personality, _libc.prctl
_ADDR_NO_RANDOMIZE = 0x0040000  # of personality(2)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_COMPUTING = (  # layer types whose precision matters; the others move values or shapes
    "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "MATRIX_MULTIPLY", "NORMALIZATION", "REDUCE",
    "SOFTMAX", "UNARY",
)  # fmt: skip
_FLOATS = ("FLOAT", "HALF", "BF16")
_LOW_MEMORY_WORKSPACE = 256 << 20
_LOW_MEMORY_TACTICS = 1 << 30
_LOW_MEMORY_LEVEL = 2  # of 0 to 5: skips the tactics that need most memory and time


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How plans are built.

    Attributes:
        product: A key of PRODUCTS.
        capabilities: tensorrt-rtx: compute capabilities of the target GPUs; tensorrt builds for
            the GPU that is there.
        version_compatible: Plans that newer versions of TensorRT run too; slower.
        hardware_compatible: None, "ampere" (any GPU from 8.0 on) or "same-capability".
        optimization_level: 0 (fastest build) to 5; None is TensorRT's own choice.
        workspace_bytes: Working memory that a tactic may use; None is all there is.
        low_memory: Cap what the builder may try, for devices with little memory.
        timing_cache: File of measured tactics, read and extended; None for none.
    """

    product: str
    capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: str | None = None
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    low_memory: bool = False
    timing_cache: Path | None = None


def targets(trt: ModuleType, capabilities: Sequence[str]) -> list[tuple[int, int]]:
    """Compute capabilities such as "8.6" as numbers.

    Raises:
        InputError: One that this TensorRT-RTX cannot build for.
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": (int(name[2:-1]), int(name[-1]))
        for name in dir(trt.ComputeCapability)
        if name.startswith("SM")
    }
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        raise InputError(
            f"this TensorRT-RTX ({trt.__version__}) has no compute capability "
            f"{', '.join(unknown)}; it builds for {', '.join(sorted(known, key=known.__getitem__))}"
        )
    return [known[capability] for capability in capabilities]


def build_plan(
    graph: Path, plan: Path, tensors: GraphIO, sizes: Mapping[str, int], options: PlanOptions
) -> dict[str, Any]:
    """Parse a typed graph and build it, every shape static.

    Args:
        graph: The ONNX file; its precision is taken as it is.
        plan: Where to write the plan.
        tensors: The graph's contract.
        sizes: Value of each symbolic dimension (R, B, H, W, h, w).
        options: How.

    Returns:
        {"layers": "TYPE PRECISION" -> how many layers of the parsed network compute that way,
        "flags": the builder's flags that were on}.

    Raises:
        BackendError: TensorRT does not take the graph or an option, with its own reasons; or its
            process was killed.
    """
    request = {
        "graph": os.path.relpath(graph.resolve(), plan.parent.resolve()),
        "plan": plan.name,
        "shapes": [[sizes.get(str(s), s) for s in tensor.shape] for tensor in tensors.inputs],
        "product": options.product,
        "capabilities": list(options.capabilities),
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "optimization_level": options.optimization_level,
        "workspace_bytes": options.workspace_bytes,
        "low_memory": options.low_memory,
        "timing_cache": str(options.timing_cache) if options.timing_cache else None,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=plan.parent,
        env=_environment(options.product),
        preexec_fn=_settle,
    )
    if -done.returncode in _MEMORY_SIGNALS:
        raise BackendError(
            f"building {graph.stem} was killed by signal {-done.returncode}: probably not enough "
            f"memory; {_memory_cure(options.product)}"
        )
    if done.returncode < 0:
        raise BackendError(
            f"building {graph.stem} crashed with signal {-done.returncode} inside "
            f"{PRODUCTS[options.product].title}; `m2kit doctor` shows versions"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BackendError(f"building {graph.stem} failed: {reason}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise BackendError(answer["error"])
    return answer


def _environment(product: str) -> dict[str, str]:
    environment = dict(os.environ)
    if product == TENSORRT_RTX:
        environment = {name: environment[name] for name in _ENVIRONMENT if name in environment}
    if "PYTHONPATH" in environment:  # the process runs in another directory
        parts = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in parts if part)
    return environment | {"PYTHONHASHSEED": "0", _RTX_SWITCH: str(int(product == TENSORRT_RTX))}


def _settle() -> None:
    """In the child, before it becomes Python: fixed addresses, and death with its parent."""
    _personality(_ADDR_NO_RANDOMIZE)  # where it is not permitted, only the bytes may differ
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _memory_cure(product: str) -> str:
    option = "" if product == TENSORRT_RTX else " use --low-memory,"
    return f"close other programs,{option} add swap, or build on a larger machine"


class _Reasons(logging.Handler):
    """Keeps what TensorRT and polygraphy report as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.ERROR:  # polygraphy's own summaries are critical
            self.lines.append(" ".join(record.getMessage().split()).removeprefix("[E] "))


def _build(request: dict[str, Any]) -> dict[str, Any]:
    """What `build_plan` has its process do."""
    trt = load_tensorrt(request["product"])
    what = f"building for {request['product']}"
    polygraphy = require("polygraphy", extra=PRODUCTS[request["product"]].extra, what=what)
    from polygraphy.backend.trt import EngineBytesFromNetwork, network_from_onnx_path
    from polygraphy.logger import G_LOGGER

    reasons = _Reasons()
    G_LOGGER.use_python_logging_system = True
    logging.getLogger().addHandler(reasons)
    try:
        # InstanceNormalization as layers of TensorRT's own: a plugin is not version compatible.
        builder, network, _ = network_from_onnx_path(
            request["graph"], flags=[trt.OnnxParserFlag.NATIVE_INSTANCENORM], strongly_typed=True
        )
        for index, shape in enumerate(request["shapes"]):
            network.get_input(index).shape = shape
        with _timings(request["timing_cache"]) as (known, found):
            config = _config(trt, request, known)(builder, network)
            config.clear_flag(trt.BuilderFlag.TF32)  # float32 islands mean float32
            own_memory = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
            if own_memory is not None:  # TensorRT-RTX: or the plan could not be captured
                config.set_flag(own_memory)
            data = EngineBytesFromNetwork(
                (builder, network), config=config, save_timing_cache=found
            )()
    except polygraphy.exception.PolygraphyException as error:
        shown = "; ".join(reasons.lines[:_ERRORS_SHOWN]) or str(error)
        title, graph = PRODUCTS[request["product"]].title, Path(request["graph"]).stem
        if out_of_memory(shown):
            cure = _memory_cure(request["product"])
            raise BackendError(
                f"not enough memory to build {graph} ({title} says: {shown}); {cure}"
            ) from error
        raise BackendError(f"{title} {trt.__version__} does not take {graph}: {shown}") from error
    Path(request["plan"]).write_bytes(data)
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    return {"layers": _layers(network), "flags": flags}


@contextlib.contextmanager
def _timings(path: str | None) -> Iterator[tuple[IO[bytes] | None, IO[bytes] | None]]:
    """A file of measured tactics, open to read (if it is there) and to write its successor, which
    replaces it as a whole when the block ends: a killed build leaves the old one."""
    if path is None:
        yield None, None
        return
    file = Path(path)
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        with contextlib.ExitStack() as stack:
            known = stack.enter_context(file.open("rb")) if file.is_file() else None
            yield known, stack.enter_context(temporary.open("wb"))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _config(trt: ModuleType, request: dict[str, Any], known: IO[bytes] | None) -> Any:
    """Polygraphy's loader of the builder's configuration."""
    if request["product"] == TENSORRT_RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return CreateConfigRTX(compute_capabilities=targets(trt, request["capabilities"]))
    from polygraphy.backend.trt import CreateConfig

    low = request["low_memory"]
    limits = {}
    workspace = request["workspace_bytes"] or (_LOW_MEMORY_WORKSPACE if low else None)
    if workspace is not None:
        limits[trt.MemoryPoolType.WORKSPACE] = workspace
    if low:
        limits[trt.MemoryPoolType.TACTIC_DRAM] = _LOW_MEMORY_TACTICS
    level = request["optimization_level"]
    if level is None and low:
        level = _LOW_MEMORY_LEVEL
    return CreateConfig(
        tf32=False,
        load_timing_cache=known,
        memory_pool_limits=limits,
        builder_optimization_level=level,
        version_compatible=request["version_compatible"],
        hardware_compatibility_level=_hardware(trt, request["hardware_compatible"]),
        max_aux_streams=0,  # one stream: a graph is captured from it
    )


def _hardware(trt: ModuleType, wanted: str | None) -> Any:
    names = {AMPERE: "AMPERE_PLUS", SAME_CAPABILITY: "SAME_COMPUTE_CAPABILITY"}
    if wanted is None:
        return None
    level = getattr(trt.HardwareCompatibilityLevel, names[wanted], None)
    if level is None:
        raise BackendError(
            f"TensorRT {trt.__version__} has no --hardware-compatible {wanted}; {AMPERE} is in "
            "every version, same-capability since 10.9"
        )
    return level


def _layers(network: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in _COMPUTING and layer.get_input(0).dtype.name in _FLOATS:
            counts[f"{layer.type.name} {layer.get_input(0).dtype.name}"] += 1
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    try:
        answer = _build(json.loads(sys.argv[1]))
    except M2KitError as refusal:
        answer = {"error": str(refusal)}
    print(json.dumps(answer))
