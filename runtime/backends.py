"""The table of backends: what each is called and takes, who builds and who opens its engines.

Whatever asks which backends there are (opening, building, verifying, benchmarks, doctor, the
command line) reads it off this table; `register` adds one. Builders need packages that a device
does not have, and belong to a room that this one does not import: they are named, as
"module:attribute".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from m2kit.build import BuildOptions, flag_of
from m2kit.contract import ONNXRUNTIME, PORTABLE, STEP_GRAPHS
from m2kit.errors import BackendError, FolderError, InputError
from m2kit.manifest import Manifest
from m2kit.precision import AUTO, Precision
from m2kit.references import resolve
from m2kit.runtime.backend import CPU, Backend, Opening
from m2kit.runtime.machine import Machine
from m2kit.runtime.ort import status as ort
from m2kit.runtime.trt import status as trt
from m2kit.runtime.trt.library import TENSORRT, TENSORRT_RTX

_NO_DEFAULTS = BuildOptions()
_PLANS = {"precision", "batch", "image_sizes"}


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A backend.

    Attributes:
        name: As --backend and engine.json name it.
        opener: (folder, manifest, opening) -> Backend, or the name of that function.
        builder: (options) -> function (job) -> Manifest, of engines/building.py, or its name.
        precisions: It takes, its default first.
        options: Of BuildOptions, those it takes.
        defaults: What is recorded for options that were not given.
        plans: Whether its engines hold plans, which it alone can read, in place of ONNX graphs.
        lowering: Of the step graphs, the one that it runs best.
        opening: Of Opening, the fields a user may give.
        ways: (manifest, provider or None) -> every opening in which this machine can run a folder.
        status: (machine) -> row -> "ready", or what is missing.
        why_not_default: (machine) -> why it is not built for unless it is asked for; "" where it
            is; None for a backend that must be asked for.
    """

    name: str
    opener: str | Callable[[Path, Manifest, Opening], Backend]
    builder: str | Callable[[BuildOptions], Any]
    precisions: tuple[Precision | Literal["auto"], ...]
    options: frozenset[str]
    opening: frozenset[str]
    ways: Callable[[Manifest, str | None], tuple[Opening, ...]]
    status: Callable[[Machine], dict[str, str]]
    defaults: BuildOptions = _NO_DEFAULTS
    plans: bool = False
    lowering: str = PORTABLE
    why_not_default: Callable[[Machine], str] | None = None

    def open(self, folder: Path, manifest: Manifest, opening: Opening) -> Backend:
        """The backend, opened on a folder.

        Raises:
            InputError: An option that this backend does not have.
            BackendError: It is not available here.
            FolderError: Built for another machine.
        """
        given = {name: getattr(opening, name) for name in ("provider", "threads")}
        wrong = [n for n, v in given.items() if v is not None and n not in self.opening]
        if wrong:
            owners = " or ".join(k.name for k in BACKENDS.values() if set(given) <= k.opening)
            raise InputError(
                f"{' and '.join(wrong)}: of the {owners} backend; {folder} was built for "
                f"{self.name}",
                option=", ".join(f"--{name}" for name in wrong),
            )
        opened: Backend = resolve(self.opener)(folder, manifest, opening)
        return opened

    def complete(self, options: BuildOptions) -> BuildOptions:
        """The options with this backend's defaults filled in.

        Raises:
            InputError: An option or precision that it does not take, with who does.
        """
        self._refuse_precision(options.precision)
        given = options.given()
        foreign = [name for name in given if name not in self.options]
        if foreign:
            owners = [kind.name for kind in BACKENDS.values() if set(given) <= kind.options]
            raise InputError(
                f"{', '.join(foreign)}: {self.name} has no such option"
                + (f"; choose the backend {' or '.join(owners)}" if owners else ""),
                option=", ".join(map(flag_of, foreign)),
            )
        precision = options.precision or self.precisions[0]
        integers = isinstance(precision, Precision) and precision.quantized
        if options.accept_quality and not integers:
            raise InputError(
                "accept_quality is for int8 or int4 alone: auto keeps what passes, and fp32 has no "
                "quality gate",
                option="--accept-quality",
            )
        if options.block_size is not None and precision != Precision.INT4:
            raise InputError(
                f"block_size is for int4 alone, found {precision_flag(precision)}: int8 has blocks "
                "of 128, and floats have none",
                option="--block-size",
            )
        return replace(self.defaults, **{**given, "precision": precision})

    def takes(self, options: BuildOptions) -> bool:
        """Whether these are complete options of this backend."""
        try:
            return self.complete(options) == options
        except InputError:
            return False

    def _refuse_precision(self, precision: Precision | str | None) -> None:
        if precision is None or precision in self.precisions:
            return
        flags = ", ".join(map(precision_flag, self.precisions))
        owners = " or ".join(k.name for k in BACKENDS.values() if precision in k.precisions)
        raise InputError(
            f"precision {precision_flag(precision)}: {self.name} takes {flags}; choose one of "
            f"these or the backend {owners}",
            option="--precision",
        )


BACKENDS: dict[str, BackendKind] = {}


def register(kind: BackendKind) -> None:
    """Add a backend to the table.

    Raises:
        InputError: The table has another one of its name.
    """
    if BACKENDS.setdefault(kind.name, kind) is not kind:
        raise InputError(f"there is a backend named {kind.name} already; choose another name")


def backend_named(name: str) -> BackendKind:
    """The backend of that name.

    Raises:
        BackendError: There is none.
    """
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; m2kit has {', '.join(BACKENDS)}")
    return BACKENDS[name]


def backend_of(folder: Path, manifest: Manifest) -> BackendKind:
    """The backend that a folder was built for; a bundle is run by ONNX Runtime.

    Raises:
        BackendError: One that this m2kit does not have.
        FolderError: One that does not make such engines.
    """
    build = manifest.build
    if build is None:
        return BACKENDS[ONNXRUNTIME]
    if build.backend not in BACKENDS:
        raise BackendError(
            f"{folder} was built for the backend {build.backend!r}, this m2kit runs "
            f"{', '.join(BACKENDS)}; build it again with `m2kit build-engine`"
        )
    kind = BACKENDS[build.backend]
    if kind.plans != manifest.has_plans or not kind.takes(build.options):
        raise FolderError(
            f"{folder}: its build contradicts itself: {kind.name} does not make such an engine; "
            f"build it again with `m2kit build-engine --backend {kind.name}`"
        )
    return kind


def default_backend(machine: Machine) -> tuple[str, str]:
    """What engines are built for unless a backend is asked for, and why not for an earlier one."""
    reasons: list[str] = []
    for kind in BACKENDS.values():
        reason = kind.why_not_default(machine) if kind.why_not_default else None
        if reason == "":
            return kind.name, "; ".join(reasons)
        if reason:
            reasons.append(reason)
    raise BackendError("no backend builds by default; choose one", option="--backend")


def precision_flag(precision: Precision | str) -> str:
    """As --precision has it."""
    return precision.flag if isinstance(precision, Precision) else precision


def _ways_of_onnxruntime(manifest: Manifest, provider: str | None) -> tuple[Opening, ...]:
    """Providers of the installed wheel (or the one asked for), each with every lowering that holds
    the steps. With CUDA the portable steps are run, and integer weights are for a CPU alone."""
    from m2kit.runtime.ort.backend import usable_providers

    ways = []
    for name in usable_providers() if provider is None else [provider]:
        for lowering, graphs in manifest.lowerings.items():
            if manifest.spec.transformer and not set(STEP_GRAPHS) <= set(graphs):
                continue
            quantized = manifest.precision.quantized
            if name != CPU and (provider is None if quantized else lowering != PORTABLE):
                continue
            ways.append(Opening(provider=name, lowering=lowering))
    return tuple(ways)


def _one_way(manifest: Manifest, provider: str | None) -> tuple[Opening, ...]:
    return (Opening(provider=provider),)


register(
    BackendKind(
        name=TENSORRT,
        opener="m2kit.runtime.trt.backend:TensorRTBackend",
        builder="m2kit.engines.trt.builder:tensorrt",
        precisions=(Precision.FLOAT16, Precision.FLOAT32),
        options=frozenset(
            _PLANS
            | {"version_compatible", "hardware_compatible", "opt_level", "workspace"}
            | {"low_memory", "no_timing_cache"}
        ),
        opening=frozenset(),
        ways=_one_way,
        status=trt.tensorrt_status,
        defaults=BuildOptions(batch=1),
        plans=True,
        why_not_default=trt.why_not_default,
    )
)
register(
    BackendKind(
        name=ONNXRUNTIME,
        opener="m2kit.runtime.ort.backend:OnnxRuntimeBackend",
        builder="m2kit.engines.ort.builder:onnxruntime",
        precisions=(Precision.FLOAT32, Precision.INT8, Precision.INT4, AUTO),
        options=frozenset({"precision", "accept_quality", "block_size"}),
        opening=frozenset({"provider", "threads"}),
        ways=_ways_of_onnxruntime,
        status=ort.status,
        lowering=ONNXRUNTIME,
        why_not_default=lambda machine: "",
    )
)
register(
    BackendKind(
        name=TENSORRT_RTX,
        opener="m2kit.runtime.trt.backend:TensorRTBackend",
        builder="m2kit.engines.trt.builder:tensorrt_rtx",
        precisions=(Precision.FLOAT16, Precision.FLOAT32),
        options=frozenset(_PLANS | {"compute_capabilities"}),
        opening=frozenset(),
        ways=_one_way,
        status=trt.rtx_status,
        defaults=BuildOptions(batch=1, compute_capabilities=("8.6", "8.9")),
        plans=True,
    )
)
