"""Reads a model's spec off its tensors' names and shapes.

What shapes do not tell (head count, latent grid, RoPE base, bit order) comes, in this order, from
the user (--spec), from the published model the user names (--preset), from the spec that m2kit's
own trainers store in the file, from the published models of the same shapes, or from a stated
assumption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from m2kit.config import (
    PRESETS,
    UNTOLD,
    UNTOLD_OF_TRANSFORMER,
    ModelSpec,
    TokenizerSpec,
    TransformerSpec,
)
from m2kit.errors import CheckpointError, SpecError

Shapes = Mapping[str, tuple[int, ...]]
_LISTED = 10  # choices named in an error
_MOST_LEVELS, _MOST_BLOCKS, _MOST_LAYERS, _MOST_SUB_TOKENS = 16, 64, 512, 62


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read off a file.

    Attributes:
        spec: The architecture.
        assumed: Fields that nothing told, with the values taken.
        preset: Name of the published model the user said it descends from.
        same_as: Names of the published models that have exactly this spec.
    """

    spec: ModelSpec
    assumed: dict[str, Any]
    preset: str | None
    same_as: tuple[str, ...]


def read_architecture(
    shapes: Shapes,
    overrides: Mapping[str, Any],
    stored: ModelSpec | None,
    preset: str | None = None,
) -> Reading:
    """The architecture of a model.

    Args:
        shapes: Canonical name (encoder.*, decoder.*, transformer.*) -> shape.
        overrides: Fields given by the user.
        stored: The spec stored in the file, if any.
        preset: Name of the published model that tells what shapes do not.

    Raises:
        CheckpointError: A tensor that tells a field is missing or impossible.
        SpecError: A field that shapes do not tell is not known, or contradicts the shapes.
    """
    assumed: dict[str, Any] = {}
    tokenizer_fields = _tokenizer_fields(shapes)
    has_transformer = any(name.startswith("transformer.") for name in shapes)
    transformer_fields = _transformer_fields(shapes) if has_transformer else {}
    told = tokenizer_fields | transformer_fields
    _refuse_contradictions(told, overrides, has_transformer)

    if stored is not None:
        _refuse_other_notes(told, stored)
    published = next((name for name in PRESETS if not _differences(name, told)), None)
    known = _untold(published, told) | _fields_of(stored)
    known |= _untold(_checked_preset(preset, told), told) | dict(overrides)
    if "bit_order" not in known:  # the V0.1 release had no adaptive GroupNorm, and read MSB first
        assumed["bit_order"] = "lsb" if tokenizer_fields["adaptive_norm"] else "msb"
    bit_order = (assumed | known)["bit_order"]
    tokenizer = TokenizerSpec(**tokenizer_fields, bit_order=bit_order)
    if not has_transformer:
        return _reading(ModelSpec(tokenizer, None), assumed, preset)
    if "heads" not in known:
        raise SpecError(_heads_not_told(told))
    if "grid" not in known:
        # The published models have as many latent rows as pixels per row: 16 x 16 at f16.
        assumed["grid"] = (tokenizer.downsampling, tokenizer.downsampling)
    if "rope_base" not in known:
        assumed["rope_base"] = 10000.0
    untold = {name: (assumed | known)[name] for name in UNTOLD_OF_TRANSFORMER}
    spec = ModelSpec(tokenizer, TransformerSpec(**transformer_fields, **untold))
    return _reading(spec, assumed, preset)


def _reading(spec: ModelSpec, assumed: dict[str, Any], preset: str | None) -> Reading:
    same = tuple(name for name, item in PRESETS.items() if item.spec == spec)
    return Reading(spec, assumed, preset, same)


def _heads_not_told(told: Mapping[str, Any]) -> str:
    width = told["width"]
    counts = [n for n in range(1, width // 4 + 1) if width % n == 0 and width // n % 4 == 0]
    nearest = min(counts, key=lambda n: abs(n - width / 64), default=1)
    presets = [name for name in PRESETS if not _differences(name, told, ignore=("classes",))]
    published = ", ".join(name for name in PRESETS if PRESETS[name].spec.transformer)
    if presets:
        of_preset = f"--preset {' or '.join(presets)}, of the same shapes but for the classes"
    else:
        of_preset = f"--preset NAME ({published}: none has its shapes)"
    return (
        f"the file does not tell the number of heads of its transformer of width {width}; give "
        f"{of_preset}, or --spec FILE.json, for example --spec '{{\"heads\": {nearest}}}'; "
        f"possible are {', '.join(map(str, counts[:_LISTED]))}"
    )


def _checked_preset(name: str | None, told: Mapping[str, Any]) -> str | None:
    """The preset the user named, if any; only its number of classes may differ."""
    if name is None:
        return None
    if name not in PRESETS:
        raise SpecError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
    differences = _differences(name, told, ignore=("classes",))
    if differences:
        raise SpecError(f"the file is not of preset {name}: {'; '.join(differences)}")
    return name


def _untold(name: str | None, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset tells beyond shapes; the bit order only if its tokenizer is the file's."""
    if name is None:
        return {}
    spec = PRESETS[name].spec
    fields = _fields_of(spec)
    tokenizer = asdict(spec.tokenizer)
    if any(tokenizer[field] != told[field] for field in tokenizer if field in told):
        del fields["bit_order"]
    return fields


def _refuse_other_notes(told: Mapping[str, Any], stored: ModelSpec) -> None:
    """A spec in the file that its own tensors contradict tells nothing reliable."""
    fields = asdict(stored.tokenizer) | (asdict(stored.transformer) if stored.transformer else {})
    other = [
        f"{name} is {fields.get(name)}, its tensors say {value}"
        for name, value in told.items()
        if fields.get(name) != value
    ]
    if other:
        raise CheckpointError(f"the file's own notes are of another model: {'; '.join(other)}")


def _differences(name: str, told: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """How a preset differs from the fields that shapes told; empty where it does not.

    For an AR model the transformer decides: its tokenizer can be replaced.
    """
    spec = PRESETS[name].spec
    if bool(spec.transformer) != ("width" in told):
        kinds = ("a tokenizer", "an AR model")
        return [f"it is {kinds['width' in told]}, the preset {kinds[bool(spec.transformer)]}"]
    fields = asdict(spec.transformer or spec.tokenizer)
    return [
        f"{field} is {told[field]}, expected {value}"
        for field, value in fields.items()
        if field in told and told[field] != value and field not in ignore
    ]


def _fields_of(spec: ModelSpec | None) -> dict[str, Any]:
    """The fields of a spec that shapes do not tell."""
    if spec is None:
        return {}
    fields = {"bit_order": spec.tokenizer.bit_order}
    for name in UNTOLD_OF_TRANSFORMER if spec.transformer else ():
        fields[name] = getattr(spec.transformer, name)
    return fields


def _refuse_contradictions(
    told: Mapping[str, Any], overrides: Mapping[str, Any], has_transformer: bool
) -> None:
    for name, value in overrides.items():
        if name in told and told[name] != value:
            raise SpecError(
                f"--spec says {name} is {value}, but the file's tensors say {told[name]}; "
                f"only {', '.join(UNTOLD)} can be given"
            )
        if name in UNTOLD_OF_TRANSFORMER and not has_transformer:
            raise SpecError(f"--spec gives {name}, but the file holds a tokenizer only")


def _count(shapes: Shapes, prefix: str, most: int) -> int:
    """1 + the largest index that follows a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    indices = [int(match.group(1)) for name in shapes if (match := pattern.match(name))]
    if not indices:
        raise CheckpointError(f"not an Open-MAGVIT2 checkpoint: it has no tensors {prefix}.*")
    if max(indices) >= most:
        raise CheckpointError(f"the file names {prefix}.{max(indices)}, expected {most} at most")
    return max(indices) + 1


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"not a whole Open-MAGVIT2 checkpoint: the tensor {name} is missing")
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"the tensor {name} has shape {list(shape)}, expected rank {rank}")
    return shape


def _tokenizer_fields(shapes: Shapes) -> dict[str, Any]:
    base = _shape(shapes, "encoder.conv_in.weight", 4)[0]
    multipliers = []
    for level in range(_count(shapes, "encoder.down", _MOST_LEVELS)):
        name = f"encoder.down.{level}.block.0.conv1.weight"
        width = _shape(shapes, name, 4)[0]
        if width % base:
            raise CheckpointError(
                f"the tensor {name} has {width} output channels, "
                f"expected a multiple of {base} (encoder.conv_in)"
            )
        multipliers.append(width // base)
    return {
        "base_channels": base,
        "channel_multipliers": tuple(multipliers),
        "blocks_per_level": _count(shapes, "encoder.mid_block", _MOST_BLOCKS),
        "code_bits": _shape(shapes, "encoder.conv_out.weight", 4)[0],
        "adaptive_norm": any(name.startswith("decoder.adaptive.") for name in shapes),
    }


def _transformer_fields(shapes: Shapes) -> dict[str, Any]:
    table = "transformer.class_emb.embedding_table.weight"
    rows, width = _shape(shapes, table, 2)
    bits = []
    for k in range(_count(shapes, "transformer.head", _MOST_SUB_TOKENS)):
        size = _shape(shapes, f"transformer.head.{k}.weight", 2)[0]
        if size < 2 or size & (size - 1):
            raise CheckpointError(
                f"transformer.head.{k}.weight has {size} rows, expected a power of two"
            )
        bits.append(size.bit_length() - 1)
    first = "transformer.spatial_blocks.0.feed_forward.w1.weight"
    return {
        "width": width,
        "inter_layers": _count(shapes, "transformer.spatial_blocks", _MOST_LAYERS),
        "intra_layers": _count(shapes, "transformer.factorized_blocks", _MOST_LAYERS),
        "ffn_width": _shape(shapes, first, 2)[0],
        "classes": rows - 1,
        "bits": tuple(bits),
    }
