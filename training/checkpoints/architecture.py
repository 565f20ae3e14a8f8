"""Reads a model's spec off its tensors' names and shapes.

What shapes do not tell (head count, latent grid, RoPE base, bit order) comes, in this order, from
the user (--spec), from the published model the user names (--preset), from the spec that m2kit's
own trainers store in the file, from the published models of the same shapes, or from a stated
assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from m2kit.config import PRESETS, UNTOLD, UNTOLD_OF_TRANSFORMER, ModelSpec, TransformerSpec
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
    family = _family(shapes)
    layout = resolve(family.layout)
    tokenizer_fields, transformer_fields = layout.fields(shapes), _transformer_fields(shapes)
    told = {"family": family.spec.family} | tokenizer_fields | transformer_fields
    _refuse_contradictions(told, overrides, stored, family)

    published = next((name for name in PRESETS if not _differences(name, told)), None)
    known = _untold(published, told) | _untold_of(stored)
    known |= _untold(_checked_preset(preset, told), told) | dict(overrides)
    assumed = {n: v for n, v in layout.assumed(tokenizer_fields).items() if n not in known}
    untold = {name: (assumed | known)[name] for name in family.spec.untold}
    tokenizer = family.spec(**tokenizer_fields, **untold)
    transformer = None
    if transformer_fields:
        if len(family.spec.axes) != 2:
            raise CheckpointError(
                f"a transformer draws pictures, and this tokenizer is of {family.spec.picture}; "
                "give that of an image model",
                option="--tokenizer",
            )
        if "heads" not in known:
            raise _heads_not_told(told)
        # The published models have as many latent rows as pixels per row: 16 x 16 at f16.
        usual = {"grid": tokenizer.strides, "rope_base": 10000.0}
        assumed |= {name: value for name, value in usual.items() if name not in known}
        untold = {name: (assumed | known)[name] for name in UNTOLD_OF_TRANSFORMER}
        transformer = TransformerSpec(**transformer_fields, **untold)
        try:
            tokenizer.check_split(transformer.vocabularies)
        except SpecError as error:
            raise CheckpointError(f"transformer.head.*: {error}") from error
    spec = ModelSpec(tokenizer, transformer)
    same = tuple(name for name, item in PRESETS.items() if item.spec == spec)
    return Reading(spec, assumed, preset, same)


def _family(shapes: Shapes) -> Family:
    """The family whose parameter names the tensors have."""
    for family in FAMILIES.values():
        if resolve(family.layout).recognises(shapes):
            return family
    raise CheckpointError(
        "not a whole Open-MAGVIT2 checkpoint: the tensor encoder.conv_in.weight, of four axes, or "
        "encoder.conv_in.conv_1.weight, of five, is missing; families are "
        f"{', '.join(FAMILIES)}"
    )


def _heads_not_told(told: Mapping[str, Any]) -> SpecError:
    width = told["width"]
    counts = [n for n in range(1, width // 4 + 1) if width % n == 0 and width // n % 4 == 0]
    nearest = min(counts, key=lambda n: abs(n - width / 64), default=1)
    presets = [name for name in PRESETS if not _differences(name, told, ignore=("classes",))]
    published = ", ".join(name for name in PRESETS if PRESETS[name].spec.transformer)
    if presets:
        of_preset = f"the preset {' or '.join(presets)}, of the same shapes but for the classes"
    else:
        of_preset = f"a preset ({published}: none has its shapes)"
    return SpecError(
        f"the file does not tell the number of heads of its transformer of width {width}; give "
        f"{of_preset}, or a spec; possible are {', '.join(map(str, counts[:_LISTED]))}",
        option=f"--preset NAME, or --spec FILE.json, for example --spec '{{\"heads\": {nearest}}}'",
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
    untold = _untold_of(spec)
    if any(told.get(field, value) != value for field, value in _fields(spec.tokenizer).items()):
        return {n: value for n, value in untold.items() if n not in spec.tokenizer.untold}
    return untold


def _untold_of(spec: ModelSpec | None) -> Fields:
    """The fields of a spec that shapes do not tell."""
    if spec is None:
        return {}
    fields = _fields(spec.tokenizer, spec.transformer)
    return {n: fields[n] for n in (*spec.tokenizer.untold, *UNTOLD_OF_TRANSFORMER) if n in fields}


def _fields(*records: Any) -> Fields:
    """The fields of those records of a spec that there are, and the tokenizer's family."""
    found: Fields = {}
    for record in records:
        if record is not None:
            own = {"family": record.family} if hasattr(record, "family") else {}
            found |= own | asdict(record)
    return found


def _differences(name: str, told: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """How a preset differs from the fields that shapes told; empty where it does not.

    For an AR model the transformer decides: its tokenizer can be replaced.
    """
    spec = PRESETS[name].spec
    if bool(spec.transformer) != ("width" in told):
        kinds = ("a tokenizer", "an AR model")
        return [f"it is {kinds['width' in told]}, the preset {kinds[bool(spec.transformer)]}"]
    return [
        f"{field} is {told[field]}, expected {value}"
        for field, value in _fields(spec.transformer or spec.tokenizer).items()
        if told.get(field, value) != value and field not in ignore
    ]


def _refuse_contradictions(
    told: Mapping[str, Any],
    overrides: Mapping[str, Any],
    stored: ModelSpec | None,
    family: Family,
) -> None:
    """Tensors say otherwise than the user, or than the file's own notes, which then tell nothing
    reliable."""
    for name, value in overrides.items():
        if told.get(name, value) != value:
            raise SpecError(
                f"the given {name} is {value}, but the file's tensors say {told[name]}; "
                f"only {', '.join(UNTOLD)} can be given",
                option="--spec",
            )
        if name not in (*told, *UNTOLD_OF_TRANSFORMER, *family.spec.untold):
            raise SpecError(
                f"{name} is given, which no tokenizer of the family {family.spec.family} has",
                option="--spec",
            )
        if name in UNTOLD_OF_TRANSFORMER and "width" not in told:
            raise SpecError(
                f"{name} is given, but the file holds a tokenizer only", option="--spec"
            )
    noted = _fields(stored.tokenizer, stored.transformer) if stored is not None else told
    other = [
        f"{name} is {noted.get(name)}, its tensors say {value}"
        for name, value in told.items()
        if noted.get(name) != value
    ]
    if other:
        raise CheckpointError(f"the file's own notes are of another model: {'; '.join(other)}")


def _transformer_fields(shapes: Shapes) -> Fields:
    """The fields of the transformer that shapes tell; none where the file has no transformer."""
    if not any(name.startswith("transformer.") for name in shapes):
        return {}
    rows, width = shape_of(shapes, "transformer.class_emb.embedding_table.weight", 2)
    heads = range(count_of(shapes, "transformer.head", _MOST_SUB_TOKENS))
    sizes = tuple(shape_of(shapes, f"transformer.head.{k}.weight", 2)[0] for k in heads)
    first = "transformer.spatial_blocks.0.feed_forward.w1.weight"
    return {
        "width": width,
        "inter_layers": count_of(shapes, "transformer.spatial_blocks", _MOST_LAYERS),
        "intra_layers": count_of(shapes, "transformer.factorized_blocks", _MOST_LAYERS),
        "ffn_width": shape_of(shapes, first, 2)[0],
        "classes": rows - 1,
        "vocabularies": sizes,
    }
