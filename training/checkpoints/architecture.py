"""Reads a model's spec off its tensors' names and shapes.

What shapes do not tell (head count, latent grid, RoPE base, bit order) comes, in this order, from
the user (--spec), from the published model the user names (--preset), from the spec that m2kit's
own trainers store in the file, from the published models of the same shapes, or from a stated
assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from m2kit.config import (
    PRESETS,
    UNTOLD,
    UNTOLD_OF_TRANSFORMER,
    ModelSpec,
    TransformerSpec,
)
from m2kit.errors import CheckpointError, SpecError
from m2kit.families.family import FAMILIES, Family
from m2kit.references import resolve
from m2kit.training.checkpoints.shapes import Fields, Shapes, count_of, shape_of

_LISTED = 10  # choices named in an error
_MOST_LAYERS, _MOST_SUB_TOKENS = 512, 62


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
    assumed: Fields
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
    assumed: Fields = {}
    family = _family(shapes)
    layout = resolve(family.layout)
    tokenizer_fields = layout.fields(shapes)
    has_transformer = any(name.startswith("transformer.") for name in shapes)
    transformer_fields = _transformer_fields(shapes) if has_transformer else {}
    told = tokenizer_fields | transformer_fields
    _refuse_contradictions(told, overrides, has_transformer)

    if stored is not None:
        _refuse_other_notes(told, stored)
    published = next((name for name in PRESETS if not _differences(name, told)), None)
    known = _untold(published, told) | _fields_of(stored)
    known |= _untold(_checked_preset(preset, told), told) | dict(overrides)
    assumed |= {n: v for n, v in layout.assumed(tokenizer_fields).items() if n not in known}
    untold = {name: (assumed | known)[name] for name in family.spec.untold}
    tokenizer = family.spec(**tokenizer_fields, **untold)
    if not has_transformer:
        return _reading(ModelSpec(tokenizer, None), assumed, preset)
    if "heads" not in known:
        raise SpecError(_heads_not_told(told))
    if "grid" not in known:
        # The published models have as many latent rows as pixels per row: 16 x 16 at f16.
        assumed["grid"] = tokenizer.strides
    if "rope_base" not in known:
        assumed["rope_base"] = 10000.0
    untold = {name: (assumed | known)[name] for name in UNTOLD_OF_TRANSFORMER}
    transformer = TransformerSpec(**transformer_fields, **untold)
    try:
        tokenizer.check_split(transformer.vocabularies)
    except SpecError as error:
        raise CheckpointError(f"transformer.head.*: {error}") from error
    spec = ModelSpec(tokenizer, transformer)
    return _reading(spec, assumed, preset)


def _family(shapes: Shapes) -> Family:
    """The family whose parameter names the tensors have."""
    for family in FAMILIES.values():
        if resolve(family.layout).recognises(shapes):
            return family
    raise CheckpointError(
        "not a whole Open-MAGVIT2 checkpoint: the tensor encoder.conv_in.weight, of four axes, is "
        f"missing; families are {', '.join(FAMILIES)}"
    )


def _reading(spec: ModelSpec, assumed: Fields, preset: str | None) -> Reading:
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


def _untold(name: str | None, told: Mapping[str, Any]) -> Fields:
    """What a preset tells beyond shapes; the bit order only if its tokenizer is the file's."""
    if name is None:
        return {}
    spec = PRESETS[name].spec
    fields = _fields_of(spec)
    tokenizer = _all_fields(spec.tokenizer)
    if any(tokenizer[field] != told[field] for field in tokenizer if field in told):
        for name in spec.tokenizer.untold:
            del fields[name]
    return fields


def _refuse_other_notes(told: Mapping[str, Any], stored: ModelSpec) -> None:
    """A spec in the file that its own tensors contradict tells nothing reliable."""
    fields = _all_fields(stored.tokenizer) | _all_fields(stored.transformer)
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
    fields = _all_fields(spec.transformer or spec.tokenizer)
    return [
        f"{field} is {told[field]}, expected {value}"
        for field, value in fields.items()
        if field in told and told[field] != value and field not in ignore
    ]


def _fields_of(spec: ModelSpec | None) -> Fields:
    """The fields of a spec that shapes do not tell."""
    if spec is None:
        return {}
    fields = {name: getattr(spec.tokenizer, name) for name in spec.tokenizer.untold}
    for name in UNTOLD_OF_TRANSFORMER if spec.transformer else ():
        fields[name] = getattr(spec.transformer, name)
    return fields


def _all_fields(record: Any) -> Fields:
    """The fields of a spec's record; none of None."""
    return {} if record is None else {f.name: getattr(record, f.name) for f in fields(record)}


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


def _transformer_fields(shapes: Shapes) -> Fields:
    table = "transformer.class_emb.embedding_table.weight"
    rows, width = shape_of(shapes, table, 2)
    sizes = []
    for k in range(count_of(shapes, "transformer.head", _MOST_SUB_TOKENS)):
        size = shape_of(shapes, f"transformer.head.{k}.weight", 2)[0]
        sizes.append(size)
    first = "transformer.spatial_blocks.0.feed_forward.w1.weight"
    return {
        "width": width,
        "inter_layers": count_of(shapes, "transformer.spatial_blocks", _MOST_LAYERS),
        "intra_layers": count_of(shapes, "transformer.factorized_blocks", _MOST_LAYERS),
        "ffn_width": shape_of(shapes, first, 2)[0],
        "classes": rows - 1,
        "vocabularies": tuple(sizes),
    }
