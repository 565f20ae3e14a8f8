"""describe: what a model is, and how pictures use its codebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit.cli.checkpoints import CHECKPOINT, checkpoint_options
from m2kit.cli.models import is_token_file, model_at, open_model
from m2kit.cli.options import SIDE, Real, json_option
from m2kit.cli.output import label, note, print_result, stages
from m2kit.cli.training_options import DataSetName
from m2kit.config import PRESETS, ModelSpec
from m2kit.errors import InputError
from m2kit.manifest import Manifest, Source
from m2kit.records import JsonObject, to_json
from m2kit.sampling import SamplingDefaults
from m2kit.token_file import read_tokens

if TYPE_CHECKING:
    from m2kit.runtime.codebook import CodebookReport
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.checkpoints.reading import Checkpoint


@click.command()
@click.argument("target", metavar="PATH|hf://...|PRESET", type=CHECKPOINT)
@checkpoint_options
@click.option(
    "--data",
    type=DataSetName(),
    help="Data set whose pictures are encoded, all of them, to report how they use the codebook.",
)
@click.option(
    "--size",
    type=SIDE,
    help="Height and width of its pictures.  [default: the model's, else the pictures' own]",
)
@click.option(
    "--bandwidth",
    type=Real(min=0, min_open=True),
    default=100.0,
    metavar="GB/S",
    help="Memory bandwidth of a device, for the least time an image can take on it.",
)
@json_option
def describe(
    target: Path | HubFile,
    data: str | None,
    size: int | None,
    bandwidth: float,
    as_json: bool,
    **reading: Any,
) -> None:
    """Describe a checkpoint, bundle, engine or preset: architecture, parameters, training; and how
    the pictures of a data set use its codebook. Of a token file: how its tokens use theirs.

    The codebook report has the codes that are used and their perplexity, the share of +1 of each
    bit, dead bits, which never change, and the bits that are correlated most.
    """
    if size is not None and data is None:
        raise InputError("--size is that of the pictures of --data, which is not given")
    model, report = model_at(target, reading, what="describing a checkpoint"), None
    if model is not None:
        rows = _of_model(model, bandwidth)
    elif is_token_file(target):
        rows, report = _of_tokens(target)
    else:
        rows = _of_preset(str(target), bandwidth)
    if data is not None and model is None:
        raise InputError(
            f"{target} encodes no pictures; --data takes a checkpoint, bundle or engine"
        )
    if data is not None and model is not None:
        of_data, report = _of_data(target, model, data, size)
        rows |= of_data
    shown = {label(n): None if value is None else _text(value) for n, value in rows.items()}
    if report is not None:
        shown |= report.rows()
        rows["codebook_report"] = to_json(report)
    print_result(shown, as_json, rows)


def _of_tokens(path: Path) -> tuple[JsonObject, CodebookReport]:
    """What a token file tells, and how its tokens use the codebook."""
    from m2kit.runtime.codebook import report_of_tokens

    tokens = read_tokens(path)
    rows = {
        "images": len(tokens.ids),
        "grid": list(tokens.ids.shape[1:-1]),
        "image_size": list(tokens.image_size),
        "vocabularies": list(tokens.vocabularies),
        "bit_order": tokens.bit_order or None,
    }
    return rows, report_of_tokens(tokens.ids, tokens.vocabularies, tokens.bit_order)


def _of_data(
    target: Path | HubFile, model: Manifest | Checkpoint, data: str, size: int | None
) -> tuple[JsonObject, CodebookReport]:
    """How many pictures of a data set were encoded, and how their tokens use the codebook."""
    from m2kit.training.datasets.table import dataset_named
    from m2kit.training.evaluation.codebook import codebook_of

    words = "pictures" if len(model.spec.tokenizer.axes) == 2 else "films"
    with open_model(target, model) as engine, stages(words) as begin:
        report, read, unread = codebook_of(
            engine, dataset_named(data), size=size, begin=begin, tell=note
        )
    return {words: read, f"unread_{words}": unread}, report


def _of_model(model: Manifest | Checkpoint, bandwidth: float) -> JsonObject:
    return (
        _origin(model.source)
        | _model(model.spec, bandwidth)
        | _prefixed("default", to_json(model.sampling) if model.sampling else {})
        | _prefixed("training", model.training)
    )


def _of_preset(name: str, bandwidth: float) -> JsonObject:
    if name not in PRESETS:
        raise InputError(
            f"{name}: expected a checkpoint file, a bundle or engine folder, or one of the "
            f"presets {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    rows = _model(preset.spec, bandwidth) | {"published_split": list(preset.split)}
    if preset.spec.transformer is not None:
        own = SamplingDefaults.of(preset.sampling, preset.spec.sub_tokens)
        rows |= _prefixed("default", to_json(own))
    return rows


def _origin(source: Source) -> JsonObject:
    value = to_json(source)
    names = ("preset", "same_as", "checkpoint_bytes", "dtypes")
    rows = {name: value[name] for name in names if value.get(name)}
    return rows | source.weights_taken | _prefixed("assumed", value["assumed"])


def _prefixed(prefix: str, values: JsonObject) -> JsonObject:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _model(spec: ModelSpec, bandwidth: float) -> JsonObject:
    """Architecture, parameters and bytes, and the least time that reading the weights takes."""
    fields, counts = spec.to_json(), spec.parameter_counts()
    rows = _prefixed("tokenizer", fields["tokenizer"])
    rows |= {
        "codebook": _codebook(spec.tokenizer.vocabularies[0]),
        "downsampling": _sides(spec.tokenizer.strides),
    }
    rows |= _prefixed("transformer", fields["transformer"] or {})
    if spec.image_size:
        rows["image_size"] = list(spec.image_size)
    rows |= {f"{part.replace(' ', '_')}_parameters": count for part, count in counts.items()}
    total = sum(counts.values())
    rows |= {"parameters": total, "float32_bytes": 4 * total}
    if spec.transformer is None:
        return rows
    weights, positions = spec.transformer.weights_per_position, spec.transformer.positions
    rows["bandwidth_gb_s"] = bandwidth
    for precision, size in (("float32", 4), ("float16", 2)):
        rows[f"{precision}_weight_bytes_per_position"] = size * weights
        floor = positions * size * weights / (1e9 * bandwidth)
        rows[f"{precision}_bandwidth_floor_s_per_image"] = float(f"{floor:.4g}")
    return rows


def _codebook(size: int) -> str:
    """A power of two as such."""
    return str(size) if size & (size - 1) else f"2^{size.bit_length() - 1}"


def _sides(strides: tuple[int, ...]) -> int | list[int]:
    """One factor where all sides have the same."""
    return strides[0] if len(set(strides)) == 1 else list(strides)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return str(value)
