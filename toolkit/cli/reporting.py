"""doctor, verify, inspect and describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import m2kit
from m2kit.cli.options import checkpoint_options, json_option, provider_option
from m2kit.cli.output import label, note, print_result, size_text, stages, weights_taken
from m2kit.config import PRESETS, ModelSpec
from m2kit.contract import is_past
from m2kit.doctor import backends, problems, read_machine, system_text
from m2kit.errors import FolderError, InputError, require
from m2kit.jetson import jetpack
from m2kit.manifest import (
    ENGINE,
    REFERENCE_FILE,
    Manifest,
    check_files,
    kind_of_folder,
    read_manifest,
)
from m2kit.parameters import parameter_counts, weights_per_position

if TYPE_CHECKING:
    from m2kit.training.checkpoints.reading import Checkpoint


def _open(path: Path) -> Manifest:
    kind = kind_of_folder(path)
    if kind is None:
        raise FolderError(f"{path}: expected a bundle or engine folder, found neither")
    return read_manifest(path, kind)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what can run here, and what to mend."""
    machine = read_machine()
    found, ready = problems(machine), backends(machine)
    about = {
        "m2kit": m2kit.__version__,
        "system": system_text(),
        "driver": machine.driver or "no NVIDIA driver",
        "gpus": ", ".join(machine.gpus) or f"none: {machine.cuda}",
    }
    if machine.l4t is not None:
        known = jetpack(machine.l4t)
        release = ".".join(map(str, machine.l4t))
        about["jetson_linux"] = f"{release}, JetPack {known.version if known else 'not known'}"
        about["power_mode"] = machine.power_mode or "not told"
    rows = {label(name): value for name, value in about.items()}
    rows |= dict(machine.distributions) | ready
    rows |= {f"problem {number}": text for number, text in enumerate(found, start=1)}
    packages = dict(machine.distributions)
    value = {**about, "gpus": list(machine.gpus), "cuda": machine.cuda, "packages": packages}
    value |= {"backends": ready, "problems": found}
    print_result(rows, as_json, value)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@provider_option
@json_option
def verify(path: Path, provider: str | None, as_json: bool) -> None:
    """Hash every file of a bundle or engine, and repeat its comparison with PyTorch's reference.

    A half-precision bundle is hashed only: `export` compared it in an emulation of half precision.
    """
    from m2kit.runtime.engine import Engine
    from m2kit.runtime.opening import open_backend, remember_check
    from m2kit.runtime.verification import compare, read_reference, require_parity

    manifest = _open(path)
    rows: dict[str, Any] = {"files": f"{len(manifest.files)} intact"}
    report, active = manifest.parity, None
    with stages() as begin:
        begin("hashing every file")
        check_files(path, manifest, trust_seen_weights=False)
        if manifest.kind == ENGINE or manifest.precision == "float32":
            reference = read_reference(path / REFERENCE_FILE)
            backend = open_backend(path, manifest, provider=provider)
            advance = begin("comparing with PyTorch's reference", manifest.spec.positions)
            with Engine(manifest.spec, backend) as engine:
                report = compare(engine, reference, advance, precision=manifest.precision)
                active = backend.active()
    rows |= {name: _outcome(check) for name, check in report["checks"].items()}
    require_parity(report, str(path))
    remember_check(path, manifest, report, active)
    rows |= {label(name): _told(value) for name, value in (active or {}).items()}
    value = {"path": str(path), "files": len(manifest.files), **report, "active": active}
    print_result(rows, as_json, value)


def _told(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "; ".join(f"{name}: {_told(item)}" for name, item in value.items())


def _outcome(check: dict[str, Any]) -> str:
    if "difference" in check:
        return f"difference {check['difference']:.1e}"
    if "found" in check:
        return ", ".join(f"{name} {value:.2g}" for name, value in check["found"].items())
    if check["mismatches"] == 0:
        return "equal"
    return f"{check['mismatches']} of {check['compared']} ids differ, from a near tie on"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or engine folder holds: graphs, files, versions."""
    manifest = _open(path)
    rows: dict[str, Any] = {manifest.kind: f"{path} ({manifest.name})"}
    for lowering, graphs in manifest.lowerings.items():
        for graph, entry in graphs.items():
            rows[f"{graph} [{lowering}]"] = f"{_tensors(entry['inputs'])} -> " + _tensors(
                entry["outputs"]
            )
            ops = sorted(entry["ops"].items(), key=lambda item: -item[1])
            rows[f"{graph} nodes"] = ", ".join(f"{count} {op}" for op, count in ops)
    rows |= {name: size_text(entry["bytes"]) for name, entry in manifest.files.items()}
    rows |= {"versions": _pairs(manifest.versions), "source": _pairs(manifest.source)}
    build = dict(manifest.build)
    for graph, details in build.pop("graphs", {}).items():
        rows[f"{graph} layers"] = ", ".join(f"{n} {kind}" for kind, n in details["layers"].items())
        rows[f"{graph} kept in float"] = ", ".join(details["moved_to_float"]) or "nothing more"
    if build:
        rows["build"] = _pairs(build)
    print_result(rows, as_json, manifest.to_json())


@click.command()
@click.argument("target", metavar="PATH|PRESET")
@checkpoint_options
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    metavar="GB/S",
    help="Memory bandwidth of a device, for the least time an image can take on it.",
)
@json_option
def describe(target: str, bandwidth: float, as_json: bool, **reading: Any) -> None:
    """Describe a checkpoint, bundle, engine or preset: architecture, parameters, training."""
    path = Path(target)
    if path.is_file():
        rows = _of_checkpoint(path, reading, bandwidth)
    else:
        given = [f"--{n}".replace("overrides", "spec") for n, value in reading.items() if value]
        if given:
            raise InputError(f"{' and '.join(given)} say how to read a checkpoint file")
        rows = _of_model(_open(path), bandwidth) if path.is_dir() else _of_preset(target, bandwidth)
    print_result({label(n): _text(value) for n, value in rows.items()}, as_json, rows)


def _of_checkpoint(path: Path, reading: dict[str, Any], bandwidth: float) -> dict[str, Any]:
    require("torch", extra="export", what="describing a checkpoint")
    from m2kit.training.checkpoints.reading import read_checkpoint

    note(f"reading {path} ...")
    return _of_model(read_checkpoint(path, **reading), bandwidth)


def _of_model(model: Manifest | Checkpoint, bandwidth: float) -> dict[str, Any]:
    return (
        _origin(model.source)
        | _model(model.spec, bandwidth)
        | _prefixed("default", model.sampling)
        | _prefixed("training", model.training)
    )


def _of_preset(name: str, bandwidth: float) -> dict[str, Any]:
    from m2kit.runtime.sampling import own_sampling

    if name not in PRESETS:
        raise InputError(
            f"{name}: expected a checkpoint file, a bundle or engine folder, or one of the "
            f"presets {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    rows = _model(preset.spec, bandwidth) | {"published_split": list(preset.split)}
    if preset.spec.transformer is not None:
        rows |= _prefixed("default", own_sampling(preset.sampling, len(preset.spec.bits)))
    return rows


def _origin(source: dict[str, Any]) -> dict[str, Any]:
    names = ("preset", "same_as", "checkpoint_bytes", "dtypes")
    rows = {name: source[name] for name in names if source.get(name)}
    return rows | weights_taken(source) | _prefixed("assumed", source["assumed"])


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _model(spec: ModelSpec, bandwidth: float) -> dict[str, Any]:
    """Architecture, parameters and bytes, and the least time that reading the weights takes."""
    fields, counts = spec.to_json(), parameter_counts(spec)
    rows: dict[str, Any] = _prefixed("tokenizer", fields["tokenizer"])
    rows |= {
        "codebook": f"2^{spec.tokenizer.code_bits}",
        "downsampling": spec.tokenizer.downsampling,
    }
    rows |= _prefixed("transformer", fields["transformer"] or {})
    if spec.image_size:
        rows["image_size"] = list(spec.image_size)
    rows |= {f"{part.replace(' ', '_')}_parameters": count for part, count in counts.items()}
    total = sum(counts.values())
    rows |= {"parameters": total, "float32_bytes": 4 * total}
    if spec.transformer is None:
        return rows
    weights, positions = weights_per_position(spec.transformer), spec.transformer.positions
    rows["bandwidth_gb_s"] = bandwidth
    for precision, size in (("float32", 4), ("float16", 2)):
        rows[f"{precision}_weight_bytes_per_position"] = size * weights
        floor = positions * size * weights / (1e9 * bandwidth)
        rows[f"{precision}_bandwidth_floor_s_per_image"] = float(f"{floor:.4g}")
    return rows


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return str(value)


def _tensors(entries: list[Any]) -> str:
    """Names and shapes; a layer's cache is shown once."""
    shown = [e for e in entries if not is_past(e[0])]
    text = ", ".join(f"{name} {tuple(shape)}".replace("'", "") for name, _, shape in shown)
    caches = [e for e in entries if is_past(e[0])]
    if caches:
        shape = str(tuple(caches[0][2])).replace("'", "")
        text += f", {len(caches)} past.* {shape}"
    return text


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
