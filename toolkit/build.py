"""How an engine was built: every option by value, what it is for, what came out. `words` turns the
options into those of `m2kit build-engine`, so that an error can name the command that builds it
again.
"""

from __future__ import annotations

import platform
import re
import shlex
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from m2kit.errors import InputError
from m2kit.precision import AUTO, Precision
from m2kit.records import Pattern, Range

AMPERE, SAME_CAPABILITY = "ampere", "same-capability"  # of --hardware-compatible
_CAPABILITY = Pattern(r"\d{1,2}\.\d", "a compute capability such as 8.6")
Capability = Annotated[str, _CAPABILITY]
Text = Annotated[str, Pattern(r"[ -~]{0,200}", "printable text")]
Count = Annotated[int, Range(0, 2**62)]
_MOST_BATCH, _MOST_SIDE, _MOST_MIB = 4096, 2**16, 2**30
_FLAGS = {"image_sizes": "--image-size", "compute_capabilities": "--compute-capability"}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of `m2kit build-engine`; a backend takes some of them (runtime/backends.py).

    Attributes:
        precision: What to compute in or to store weights in; "auto" is the fastest precision that
            passes its gate; None is the backend's own default.
        accept_quality: Keep an int8 or int4 engine that does not pass the quality gate.
        batch: Images at once; with guidance twice as many rows.
        image_sizes: Pixels along each axis, such as (height, width), beside the model's own.
        compute_capabilities: Of the target GPUs, such as "8.6".
        version_compatible: Plans that newer versions run too; slower.
        hardware_compatible: "ampere" (any GPU from 8.0 on) or "same-capability".
        opt_level: 0 (fastest build) to 5; None is the builder's own choice.
        workspace: MiB of working memory a layer may use; None is all there is.
        low_memory: Cap what the builder may try, for devices with little memory.
        no_timing_cache: Measure every layer anew.
    """

    precision: Precision | Literal["auto"] | None = None
    accept_quality: bool = False
    batch: int | None = None
    image_sizes: tuple[tuple[int, ...], ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: Literal["ampere", "same-capability"] | None = None
    opt_level: int | None = None
    workspace: int | None = None
    low_memory: bool = False
    no_timing_cache: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no builder takes; a precision may be given by its name, and lists for
        tuples."""
        sizes, capabilities = self.image_sizes, self.compute_capabilities
        if not _is_list(sizes) or not all(_is_list(size) and size for size in sizes):
            raise InputError(f"image_sizes must be such as [(256, 256)], found {sizes!r:.60}")
        if not _is_list(capabilities):
            raise InputError(f"compute_capabilities must be a list, found {capabilities!r:.60}")
        object.__setattr__(self, "image_sizes", tuple(map(tuple, sizes)))
        object.__setattr__(self, "compute_capabilities", tuple(capabilities))
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, bool) and not isinstance(value, bool):
                raise InputError(f"{item.name} must be True or False, found {value!r:.60}")
        if self.precision not in (None, AUTO):
            try:
                object.__setattr__(self, "precision", Precision(self.precision))
            except ValueError as error:
                names = ", ".join([*(precision.value for precision in Precision), AUTO])
                raise InputError(
                    f"precision must be one of {names}, found {self.precision!r:.60}"
                ) from error
        if self.hardware_compatible not in (None, AMPERE, SAME_CAPABILITY):
            raise InputError(
                f"hardware_compatible must be {AMPERE} or {SAME_CAPABILITY}, found "
                f"{self.hardware_compatible!r:.60}"
            )
        _check(self.batch, "batch", 1, _MOST_BATCH)
        _check(self.opt_level, "opt_level", 0, 5)
        _check(self.workspace, "workspace", 1, _MOST_MIB)
        for size in self.image_sizes:
            for side in size:
                _check(side, "image_sizes", 1, _MOST_SIDE)
        for text in self.compute_capabilities:
            if not isinstance(text, str) or not re.fullmatch(_CAPABILITY.text, text):
                raise InputError(f"expected {_CAPABILITY.words}, found {text!r:.60}")

    def given(self) -> dict[str, Any]:
        """The options that are not at their default."""
        return {
            item.name: value
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }

    def words(self) -> list[str]:
        """The same as words of the command line."""
        words: list[str] = []
        for name, value in self.given().items():
            flag = flag_of(name)
            if value is True:
                words.append(flag)
                continue
            several = isinstance(value, tuple)
            for item in value if several else [value]:
                words += [flag, _word(item)]
        return words


def flag_of(option: str) -> str:
    """The command line's name of an option."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def _word(value: Any) -> str:
    if isinstance(value, Precision):
        return value.flag
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _check(value: Any, name: str, least: int, most: int) -> None:
    if value is not None and not (type(value) is int and least <= value <= most):
        raise InputError(f"{name} must be a whole number in {least}..{most}, found {value!r:.60}")


@dataclass(frozen=True, slots=True)
class Target:
    """The machines an engine is for.

    Attributes:
        os: As platform.system names it.
        architecture: As platform.machine names it.
        gpu: Name of the GPU it was built on; None where any of the capabilities will do.
        compute_capabilities: Of its GPUs; none for a processor.
    """

    os: Text
    architecture: Text
    gpu: Text | None = None
    compute_capabilities: tuple[Capability, ...] = ()

    @classmethod
    def here(cls, gpu: str | None = None, capabilities: tuple[str, ...] = ()) -> Target:
        """This operating system and architecture."""
        return cls(platform.system(), platform.machine(), gpu, capabilities)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Stored bytes of an engine's weights, scales included.

    Attributes:
        graphs: Graph -> its weights; of a step those that one run needs: all but heads and
            embedding tables.
        heads: All heads.
        tables: All embedding tables.
        row: One row of an embedding table.
    """

    graphs: dict[str, Count]
    heads: Count = 0
    tables: Count = 0
    row: Count = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.graphs.values()) + self.heads + self.tables


@dataclass(frozen=True, slots=True)
class Quantization:
    """How integer weights are stored.

    Attributes:
        matmuls: How many matmuls have them.
        bits: Of a weight.
        head_bits: Of a weight of the output heads.
        block_size: Weights that share a scale.
    """

    matmuls: Count
    bits: Count
    head_bits: Count
    block_size: Count


@dataclass(frozen=True, slots=True)
class Trial:
    """A precision that `auto` tried: whether it passed its gate, and if so how fast it is."""

    passed: bool
    position_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What TensorRT's builder was given for a graph.

    Attributes:
        layers: "TYPE PRECISION" -> layers of the parsed network that compute that way.
        flags: The builder's flags that were on.
    """

    layers: dict[str, Count]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Build:
    """How an engine was built.

    Attributes:
        backend: A name of runtime/backends.py.
        backend_version: Of what built it.
        bundle: Name of the bundle's folder.
        options: As they were given, defaults filled in.
        target: What it is for.
        rows: Rows of the step graphs; None is any number.
        image_sizes: Sizes it takes, the model's own first; None is any.
        weight_bytes: What a run of each graph reads, where that is known.
        quantization: Of integer weights.
        tried: What `auto` tried, by precision.
        plans: Graph -> what TensorRT's builder was given.
        seconds: It took.
        peak_memory_bytes: Of the building process.
    """

    backend: Annotated[str, Pattern(r"[a-z0-9-]{1,40}", "a backend's name")]
    backend_version: Text
    bundle: Annotated[str, Pattern(r"[^/\\\0]{1,255}", "a folder's name")]
    options: BuildOptions
    target: Target
    rows: Annotated[int, Range(1, 2 * _MOST_BATCH)] | None = None
    image_sizes: tuple[tuple[Annotated[int, Range(1, _MOST_SIDE)], ...], ...] | None = None
    weight_bytes: WeightBytes | None = None
    quantization: Quantization | None = None
    tried: dict[str, Trial] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    seconds: Annotated[float, Range(0, 1e9)] = 0.0
    peak_memory_bytes: Count = 0


def rebuild_command(
    build: Build, engine: str, image_sizes: tuple[tuple[int, ...], ...] = ()
) -> str:
    """The command that builds an engine again.

    Args:
        build: Its record.
        engine: Name of its folder.
        image_sizes: To build it for in addition.
    """
    options = replace(build.options, image_sizes=(*build.options.image_sizes, *image_sizes))
    words = ["m2kit", "build-engine", build.bundle, "-o", engine, "--backend", build.backend]
    return shlex.join(words + options.words())
