"""verify, inspect and describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit.cli.checkpoints import CHECKPOINT, checkpoint_options, read_named
from m2kit.cli.options import PATH, Real, json_option, provider_option
from m2kit.cli.output import label, print_result, size_text, stages
from m2kit.config import PRESETS, ModelSpec
from m2kit.contract import TensorSpec, is_past
from m2kit.errors import FolderError, InputError, require
from m2kit.folder_check import check_folder
from m2kit.manifest import ENGINE, Manifest, Source
from m2kit.manifest_file import kind_of_folder, read_manifest
from m2kit.precision import Precision
from m2kit.records import JsonObject, to_json
from m2kit.sampling import SamplingDefaults

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.checkpoints.reading import Checkpoint


def _open(path: Path) -> Manifest:
    kind = kind_of_folder(path)
    if kind is None:
        raise FolderError(f"{path}: expected a bundle or engine folder, found neither")
    return read_manifest(path, kind)


@click.command()
@click.argument("path", type=PATH)
@provider_option
@json_option
def verify(path: Path, provider: str | None, as_json: bool) -> None:
    """Hash every file of a bundle or engine, and repeat its comparison with PyTorch's reference, in
    every way that this machine can run it.

    A half-precision bundle is hashed only: `export` compared it in an emulation of half precision,
    which adds up products in float32, as a GPU may not.
    """
    from m2kit.runtime.parity import prove, remember

    manifest = _open(path)
    report, active = manifest.parity, JsonObject()
    with stages() as begin:
        begin("hashing every file")
        check_folder(path, manifest, trust_seen_weights=False)
        runs_here = manifest.kind == ENGINE or manifest.precision is Precision.FLOAT32
        if runs_here:
            report = prove(path, manifest, begin, provider=provider, ran=active.update)
    report.require(str(path))
    if manifest.kind == ENGINE:
        remember(path, manifest, report)
    rows = {"files": f"{len(manifest.files)} intact", **report.rows}
    rows |= {label(name): _shown(value) for name, value in active.items()}
    value = {"path": str(path), "files": len(manifest.files), **report.with_result()}
    value["active"] = active or None
    print_result(rows, as_json, value)


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "; ".join(f"{name}: {_shown(item)}" for name, item in value.items())


@click.command()
@click.argument("path", type=PATH)
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or engine folder holds: graphs, files, versions."""
    manifest = _open(path)
    rows = {manifest.kind: f"{path} ({manifest.name})"}
    for lowering, graph, entry in manifest.entries():
        rows[f"{graph} [{lowering}]"] = f"{_tensors(entry.inputs)} -> {_tensors(entry.outputs)}"
        ops = sorted(entry.ops.items(), key=lambda item: -item[1])
        rows[f"{graph} nodes"] = ", ".join(f"{count} {op}" for op, count in ops)
    rows |= {name: size_text(entry.bytes) for name, entry in manifest.files.items()}
    rows |= {"versions": _pairs(manifest.versions), "source": _pairs(to_json(manifest.source))}
    for graph, moved in manifest.moved_to_float.items():
        rows[f"{graph} kept in float"] = ", ".join(moved) or "nothing more"
    if manifest.build is not None:
        for graph, plan in manifest.build.plans.items():
            layers = ", ".join(f"{count} {kind}" for kind, count in plan.layers.items())
            rows[f"{graph} layers"] = layers
        told = to_json(manifest.build)
        rows["build"] = _pairs({n: v for n, v in told.items() if n != "plans"})
    print_result(rows, as_json, manifest.to_json())


@click.command()
@click.argument("target", metavar="PATH|hf://...|PRESET", type=CHECKPOINT)
@checkpoint_options
@click.option(
    "--bandwidth",
    type=Real(min=0, min_open=True),
    default=100.0,
    metavar="GB/S",
    help="Memory bandwidth of a device, for the least time an image can take on it.",
)
@json_option
def describe(target: Path | HubFile, bandwidth: float, as_json: bool, **reading: Any) -> None:
    """Describe a checkpoint, bundle, engine or preset: architecture, parameters, training."""
    if not isinstance(target, Path) or target.is_file():
        rows = _of_checkpoint(target, reading, bandwidth)
    else:
        given = [f"--{n}".replace("overrides", "spec") for n, value in reading.items() if value]
        if given:
            raise InputError(f"{' and '.join(given)} say how to read a checkpoint file")
        model = _open(target) if target.is_dir() else None
        rows = _of_model(model, bandwidth) if model else _of_preset(str(target), bandwidth)
    shown = {label(n): None if value is None else _text(value) for n, value in rows.items()}
    print_result(shown, as_json, rows)


def _of_checkpoint(file: Path | HubFile, reading: JsonObject, bandwidth: float) -> JsonObject:
    require("torch", extra="export", what="describing a checkpoint")
    return _of_model(read_named(file, **reading), bandwidth)


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


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    """Names and shapes; a layer's cache is shown once."""
    shown = [f"{t.name} {t.shape}" for t in tensors if not is_past(t.name)]
    caches = [t.shape for t in tensors if is_past(t.name)]
    if caches:
        shown.append(f"{len(caches)} past.* {caches[0]}")
    return ", ".join(shown).replace("'", "")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
