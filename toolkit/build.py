"""How an engine was built: every option by value, what it is for, what came out. `words` turns the
options into those of `m2kit build-engine`, so that an error can name the command that builds it
again.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from m2kit.errors import InputError
from m2kit.precision import Precision
from m2kit.records import Count, Pattern, Range, Text, checked_fields

AMPERE, SAME_CAPABILITY = "ampere", "same-capability"  # of --hardware-compatible
Capability = Annotated[str, Pattern(r"\d{1,2}\.\d", "a compute capability such as 8.6")]
Size = Annotated[tuple[Annotated[int, Range(1, 2**16)], ...], Range(1, 8)]  # of an image, in pixels
Rounding = Literal["nearest", "gptq"]  # of integer weights
BLOCK_SIZES = (32, 64, 128)  # of int4: weights that share a scale
_MOST_BATCH = 4096
_FLAGS = {"image_sizes": "--image-size", "compute_capabilities": "--compute-capability"}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of `m2kit build-engine`; a backend takes some of them (runtime/backends.py).

    Attributes:
        precision: What to compute in or to store weights in; "auto" is the fastest precision that
            passes its gate; None is the backend's own default.
        accept_quality: Keep an int8 or int4 engine that does not pass the quality gate.
        block_size: Weights of an int4 engine that share a scale; None is 128.
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
    block_size: Annotated[int, Range(BLOCK_SIZES[0], BLOCK_SIZES[-1])] | None = None
    batch: Annotated[int, Range(1, _MOST_BATCH)] | None = None
    image_sizes: tuple[Size, ...] = ()
    compute_capabilities: tuple[Capability, ...] = ()
    version_compatible: bool = False
    hardware_compatible: Literal["ampere", "same-capability"] | None = None
    opt_level: Annotated[int, Range(0, 5)] | None = None
    workspace: Annotated[int, Range(1, 2**30)] | None = None
    low_memory: bool = False
    no_timing_cache: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no builder takes; a precision may be given by its name, and lists for
        tuples."""
        for name, value in checked_fields(self, "", InputError).items():
            object.__setattr__(self, name, value)
        if self.block_size not in (None, *BLOCK_SIZES):
            raise InputError(
                f"block_size: expected one of {', '.join(map(str, BLOCK_SIZES))}, found "
                f"{self.block_size}",
                option="--block-size",
            )

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
            if value is True:
                words.append(flag_of(name))
                continue
            for item in value if isinstance(value, tuple) else [value]:
                words += [flag_of(name), _word(item)]
        return words


def flag_of(option: str) -> str:
    """The command line's name of an option."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def _word(value: Any) -> str:
    if isinstance(value, Precision):
        return value.flag
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Target:
    """The machines an engine is for.

    Attributes:
        os: As platform.system names it.
        architecture: As platform.machine names it.
        gpu: Name of the GPU it was built on; None where any of the capabilities will do.
        compute_capabilities: Of its GPUs; none for a processor.
        multiprocessors: Of the GPU it was built on.
        memory_bytes: Of that GPU, all of it.
    """

    os: Text
    architecture: Text
    gpu: Text | None = None
    compute_capabilities: tuple[Capability, ...] = ()
    multiprocessors: Annotated[int, Range(1, 10_000)] | None = None
    memory_bytes: Annotated[int, Range(1, 2**62)] | None = None

    @classmethod
    def here(cls) -> Target:
        """This operating system and architecture."""
        return cls(platform.system(), platform.machine())


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
        rounding: To the nearest, or "gptq": so that outputs change least over what the exact model
            computes while it draws images (engines/ort/rounding.py), heads to the nearest.
    """

    matmuls: Count
    bits: Count
    head_bits: Count
    block_size: Count
    rounding: Rounding = "nearest"


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
    image_sizes: tuple[Size, ...] | None = None
    weight_bytes: WeightBytes | None = None
    quantization: Quantization | None = None
    tried: dict[str, Trial] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    seconds: Annotated[float, Range(0, 1e9)] = 0.0
    peak_memory_bytes: Count = 0
