"""Reads a model's spec off its tensors' names and shapes.

What shapes do not tell (head count, latent grid, RoPE base, bit order) comes, in this order, from
the user (--spec), from the spec that m2kit's own trainers store in the file, from the
one published architecture of the same shapes, or from a stated assumption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2kit.config import PRESETS, ModelSpec, Preset, TokenizerSpec, TransformerSpec
from m2kit.errors import CheckpointError, SpecError

Shapes = Mapping[str, tuple[int, ...]]
_UNTOLD = ("heads", "grid", "rope_base", "bit_order")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read off a file.

    Attributes:
        spec: The architecture.
        assumed: Fields that nothing told, with the values taken.
        preset: The published model of exactly this architecture, if there is one.
    """

    spec: ModelSpec
    assumed: dict[str, Any]
    preset: Preset | None


def read_architecture(
    shapes: Shapes, overrides: Mapping[str, Any], stored: ModelSpec | None
) -> Reading:
    """The architecture of a model.

    Args:
        shapes: Canonical name (encoder.*, decoder.*, transformer.*) -> shape.
        overrides: Fields given by the user.
        stored: The spec stored in the file, if any.

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

    published = _published(tokenizer_fields, transformer_fields)
    known = _fields_of(published) | _fields_of(stored) | dict(overrides)
    if "bit_order" not in known:  # the V0.1 release had no adaptive GroupNorm, and read MSB first
        assumed["bit_order"] = "lsb" if tokenizer_fields["adaptive_norm"] else "msb"
    bit_order = (assumed | known)["bit_order"]
    tokenizer = TokenizerSpec(**tokenizer_fields, bit_order=bit_order)
    if not has_transformer:
        return _reading(ModelSpec(tokenizer, None), assumed)
    if "heads" not in known:
        width = transformer_fields["width"]
        raise SpecError(
            f"the file does not tell the number of heads of a transformer of width {width}, and no "
            f"preset has its shapes ({', '.join(n for n in PRESETS if n.startswith('ar-'))}); "
            f"give it with --spec, for example --spec '{{\"heads\": {max(1, width // 64)}}}'"
        )
    if "grid" not in known:
        # The published models have as many latent rows as pixels per row: 16 x 16 at f16.
        assumed["grid"] = (tokenizer.downsampling, tokenizer.downsampling)
    if "rope_base" not in known:
        assumed["rope_base"] = 10000.0
    untold = {name: (assumed | known)[name] for name in ("heads", "grid", "rope_base")}
    return _reading(ModelSpec(tokenizer, TransformerSpec(**transformer_fields, **untold)), assumed)


def _reading(spec: ModelSpec, assumed: dict[str, Any]) -> Reading:
    same = [preset for preset in PRESETS.values() if preset.spec == spec]
    return Reading(spec, assumed, same[0] if same else None)


def _fields_of(spec: ModelSpec | None) -> dict[str, Any]:
    """The fields of a spec that shapes do not tell."""
    if spec is None:
        return {}
    fields = {"bit_order": spec.tokenizer.bit_order}
    for name in _UNTOLD[:3] if spec.transformer else ():
        fields[name] = getattr(spec.transformer, name)
    return fields


def _published(tokenizer: dict[str, Any], transformer: dict[str, Any]) -> ModelSpec | None:
    """The published model that has exactly these shape-told fields."""
    for spec in (preset.spec for preset in PRESETS.values()):
        parts = [(spec.tokenizer, tokenizer), (spec.transformer, transformer)]
        if bool(spec.transformer) == bool(transformer) and all(
            getattr(part, name) == value for part, told in parts for name, value in told.items()
        ):
            return spec
    return None


def _refuse_contradictions(
    told: Mapping[str, Any], overrides: Mapping[str, Any], has_transformer: bool
) -> None:
    for name, value in overrides.items():
        if name in told and told[name] != value:
            raise SpecError(
                f"--spec says {name} is {value}, but the file's tensors say {told[name]}; "
                f"only {', '.join(_UNTOLD)} can be given"
            )
        if name in _UNTOLD[:3] and not has_transformer:
            raise SpecError(f"--spec gives {name}, but the file holds a tokenizer only")


def _count(shapes: Shapes, prefix: str) -> int:
    """1 + the largest index that follows a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    indices = [int(match.group(1)) for name in shapes if (match := pattern.match(name))]
    if not indices:
        raise CheckpointError(f"not an Open-MAGVIT2 checkpoint: it has no tensors {prefix}.*")
    if max(indices) >= 1000:
        raise CheckpointError(f"the file names {prefix}.{max(indices)}: no model is that deep")
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
    for level in range(_count(shapes, "encoder.down")):
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
        "blocks_per_level": _count(shapes, "encoder.mid_block"),
        "code_bits": _shape(shapes, "encoder.conv_out.weight", 4)[0],
        "adaptive_norm": any(name.startswith("decoder.adaptive.") for name in shapes),
    }


def _transformer_fields(shapes: Shapes) -> dict[str, Any]:
    table = "transformer.class_emb.embedding_table.weight"
    rows, width = _shape(shapes, table, 2)
    bits = []
    for k in range(_count(shapes, "transformer.head")):
        size = _shape(shapes, f"transformer.head.{k}.weight", 2)[0]
        if size < 2 or size & (size - 1):
            raise CheckpointError(
                f"transformer.head.{k}.weight has {size} rows, expected a power of two"
            )
        bits.append(size.bit_length() - 1)
    first = "transformer.spatial_blocks.0.feed_forward.w1.weight"
    return {
        "width": width,
        "inter_layers": _count(shapes, "transformer.spatial_blocks"),
        "intra_layers": _count(shapes, "transformer.factorized_blocks"),
        "ffn_width": _shape(shapes, first, 2)[0],
        "classes": rows - 1,
        "bits": tuple(bits),
    }
