"""Typed graph -> TensorRT plan, in a process of its own: the only module that touches TensorRT's
builder, through polygraphy's loaders, for the products of runtime/trt/library.py.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from m2kit.build import AMPERE, SAME_CAPABILITY, BuildOptions, Plan
from m2kit.errors import BackendError, InputError, M2KitError, require
from m2kit.outputs import new_file
from m2kit.records import read_record, to_json
from m2kit.runtime.trt.library import (
    PRODUCTS,
    TENSORRT_RTX,
    load_tensorrt,
    out_of_memory,
    out_of_workspace,
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
_LOW_MEMORY_WORKSPACE = 256  # MiB
_LOW_MEMORY_LEVEL = 2  # of 0 to 5: skips the tactics that need most memory and time


@dataclass(frozen=True, slots=True)
class _Request:
    """What a plan's process is asked for.

    Attributes:
        graph: The ONNX file, from the folder in which the process runs.
        plan: Name of the plan's file.
        shapes: Of the inputs.
        product: A key of PRODUCTS.
        options: How.
        timing_cache: File of measured tactics, read and extended.
    """

    graph: str
    plan: str
    shapes: tuple[tuple[int, ...], ...]
    product: str
    options: BuildOptions
    timing_cache: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What it says: the plan's record, or why there is none."""

    plan: Plan | None = None
    error: str | None = None


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
    graph: Path,
    plan: Path,
    shapes: tuple[tuple[int, ...], ...],
    product: str,
    options: BuildOptions,
    timing_cache: Path | None = None,
) -> Plan:
    """Parse a typed graph and build it, every shape static.

    Args:
        graph: The ONNX file; its precision is taken as it is.
        plan: Where to write the plan.
        shapes: Of the inputs, in the contract's order.
        product: A key of PRODUCTS.
        options: How; tensorrt builds for the GPU that is there.
        timing_cache: File of measured tactics, read and extended.

    Raises:
        BackendError: TensorRT does not take the graph or an option, with its own reasons; or its
            process was killed.
    """
    request = _Request(
        graph=os.path.relpath(graph.resolve(), plan.parent.resolve()),
        plan=plan.name,
        shapes=shapes,
        product=product,
        options=options,
        timing_cache=str(timing_cache) if timing_cache else None,
    )
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(to_json(request))],
        capture_output=True,
        text=True,
        errors="surrogateescape",  # a path may be any
        cwd=plan.parent,
        env=_environment(product),
        preexec_fn=_settle,
    )
    if -done.returncode in _MEMORY_SIGNALS:
        raise BackendError(
            f"building {graph.stem} was killed by signal {-done.returncode}: probably not enough "
            f"memory; {_memory_cure(product, options)}"
        )
    if done.returncode < 0:
        raise BackendError(
            f"building {graph.stem} crashed with signal {-done.returncode} inside "
            f"{PRODUCTS[product].title}; `m2kit doctor` shows versions"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BackendError(f"building {graph.stem} failed: {reason}")
    answer = read_record(_Answer, json.loads(done.stdout.splitlines()[-1]))
    if answer.plan is None:
        raise BackendError(answer.error or f"building {graph.stem} failed without a reason")
    return answer.plan


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


def _memory_cure(product: str, options: BuildOptions) -> str:
    option = "" if product == TENSORRT_RTX or options.low_memory else " build with low_memory,"
    return f"close other programs,{option} add swap, or build on a larger machine"


def _workspace_cure(product: str, options: BuildOptions) -> str:
    """Where the options cap what a layer may use, the cap is the first suspect."""
    if options.workspace is not None:
        return "build it with a larger workspace, or without"
    if options.low_memory:
        return f"build it without low_memory, or with workspace {4 * _LOW_MEMORY_WORKSPACE}"
    return _memory_cure(product, options)


class _Reasons(logging.Handler):
    """Keeps what TensorRT and polygraphy report as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.ERROR:  # polygraphy's own summaries are critical
            self.lines.append(" ".join(record.getMessage().split()).removeprefix("[E] "))


def _build(request: _Request) -> Plan:
    """What `build_plan` has its process do."""
    trt, product = load_tensorrt(request.product), PRODUCTS[request.product]
    what = f"building for {request.product}"
    polygraphy = require("polygraphy", extra=product.extra, what=what)
    from polygraphy.backend.trt import EngineBytesFromNetwork, network_from_onnx_path
    from polygraphy.logger import G_LOGGER

    reasons = _Reasons()
    G_LOGGER.use_python_logging_system = True
    logging.getLogger().addHandler(reasons)
    try:
        # InstanceNormalization as layers of TensorRT's own: a plugin is not version compatible.
        builder, network, _ = network_from_onnx_path(
            request.graph, flags=[trt.OnnxParserFlag.NATIVE_INSTANCENORM], strongly_typed=True
        )
        for index, shape in enumerate(request.shapes):
            network.get_input(index).shape = shape
        with _timings(request.timing_cache) as (known, found):
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
        title, graph = product.title, Path(request.graph).stem
        if out_of_workspace(shown):
            cure = _workspace_cure(request.product, request.options)
            raise BackendError(
                f"no kernel of a layer of {graph} could be used, most often for lack of memory "
                f"({title} says: {shown}); {cure}"
            ) from error
        if out_of_memory(shown):
            cure = _memory_cure(request.product, request.options)
            raise BackendError(
                f"not enough memory to build {graph} ({title} says: {shown}); {cure}"
            ) from error
        raise BackendError(f"{title} {trt.__version__} does not take {graph}: {shown}") from error
    Path(request.plan).write_bytes(data)
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    return Plan(_layers(network), tuple(flags))


@contextlib.contextmanager
def _timings(path: str | None) -> Iterator[tuple[IO[bytes] | None, IO[bytes] | None]]:
    """A file of measured tactics, open to read (if it is there) and to write its successor, which
    replaces it as a whole when the block ends: a killed build leaves the old one."""
    if path is None:
        yield None, None
        return
    file = Path(path)
    with new_file(file) as temporary, contextlib.ExitStack() as stack:
        known = stack.enter_context(file.open("rb")) if file.is_file() else None
        yield known, stack.enter_context(temporary.open("wb"))


def _config(trt: ModuleType, request: _Request, known: IO[bytes] | None) -> Any:
    """Polygraphy's loader of the builder's configuration."""
    options = request.options
    if request.product == TENSORRT_RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return CreateConfigRTX(compute_capabilities=targets(trt, options.compute_capabilities))
    from polygraphy.backend.trt import CreateConfig

    limits, workspace, level = {}, options.workspace, options.opt_level
    if options.low_memory:
        workspace = workspace or _LOW_MEMORY_WORKSPACE
        level = _LOW_MEMORY_LEVEL if level is None else level
    if workspace is not None:
        limits[trt.MemoryPoolType.WORKSPACE] = workspace << 20
    return CreateConfig(
        tf32=False,
        load_timing_cache=known,
        memory_pool_limits=limits,
        builder_optimization_level=level,
        version_compatible=options.version_compatible,
        hardware_compatibility_level=_hardware(trt, options.hardware_compatible),
        max_aux_streams=0,  # one stream: a graph is captured from it
    )


def _hardware(trt: ModuleType, wanted: str | None) -> Any:
    names = {AMPERE: "AMPERE_PLUS", SAME_CAPABILITY: "SAME_COMPUTE_CAPABILITY"}
    if wanted is None:
        return None
    level = getattr(trt.HardwareCompatibilityLevel, names[wanted], None)
    if level is None:
        raise BackendError(
            f"TensorRT {trt.__version__} has no hardware_compatible {wanted}; {AMPERE} is in "
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
        answer = _Answer(_build(read_record(_Request, json.loads(sys.argv[1]))))
    except M2KitError as refusal:
        answer = _Answer(error=str(refusal))
    print(json.dumps(to_json(answer)))
