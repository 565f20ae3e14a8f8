"""verify, inspect and describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m2kit.cli.options import json_option, provider_option, spec_option
from m2kit.cli.output import print_result, size_text, stage
from m2kit.config import PRESETS, ModelSpec
from m2kit.contract import is_past
from m2kit.errors import FolderError, InputError, require
from m2kit.manifest import (
    REFERENCE_FILE,
    Manifest,
    check_files,
    kind_of_folder,
    read_manifest,
)
from m2kit.parameters import parameter_counts


def _open(path: Path) -> Manifest:
    kind = kind_of_folder(path)
    if kind is None:
        raise FolderError(f"{path}: expected a bundle or engine folder, found neither")
    return read_manifest(path, kind)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@provider_option
@json_option
def verify(path: Path, provider: str, as_json: bool) -> None:
    """Hash every file of a bundle or engine, and repeat its comparison with PyTorch's reference."""
    from m2kit.runtime.engine import Engine
    from m2kit.runtime.onnxruntime_backend import OnnxRuntimeBackend
    from m2kit.runtime.verification import compare, read_reference, require_parity

    manifest = _open(path)
    stage("hashing every file")
    check_files(path, manifest, trust_seen_weights=False)
    stage("comparing with PyTorch's reference")
    backend = OnnxRuntimeBackend(path, manifest, provider=provider)
    with Engine(manifest.spec, backend) as engine:
        report = compare(engine, read_reference(path / REFERENCE_FILE))
    rows = {"files": f"{len(manifest.files)} intact"} | {
        name: _outcome(check) for name, check in report["checks"].items()
    }
    require_parity(report, str(path))
    print_result(rows, as_json, {"path": str(path), "files": len(manifest.files), **report})


def _outcome(check: dict[str, Any]) -> str:
    if "difference" in check:
        return f"difference {check['difference']:.1e}"
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
    if manifest.build:
        rows["build"] = _pairs(manifest.build)
    print_result(rows, as_json, manifest.to_json())


@click.command()
@click.argument("target", metavar="PATH|PRESET")
@spec_option
@json_option
def describe(target: str, overrides: dict[str, Any], as_json: bool) -> None:
    """Describe a checkpoint, bundle, engine or preset: architecture, parameters, training."""
    path = Path(target)
    if target in PRESETS and not path.exists():
        preset = PRESETS[target]
        sampling = {"guidance": preset.guidance, "temperature": preset.temperature}
        rows = _describe(preset.spec, sampling if preset.guidance else {}, {})
    elif kind_of_folder(path):
        manifest = _open(path)
        rows = _describe(manifest.spec, manifest.sampling, manifest.training)
    elif path.is_file():
        require("torch", extra="export", what="describing a checkpoint")
        from m2kit.training.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(path, overrides=overrides)
        rows = _describe(checkpoint.spec, checkpoint.sampling, checkpoint.training)
    else:
        raise InputError(
            f"{target}: expected a checkpoint file, a bundle or engine folder, or one of the "
            f"presets {', '.join(PRESETS)}"
        )
    print_result({name: _text(value) for name, value in rows.items()}, as_json, rows)


def _describe(
    spec: ModelSpec, sampling: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    counts = parameter_counts(spec)
    rows: dict[str, Any] = {
        f"tokenizer {name.replace('_', ' ')}": value
        for name, value in spec.to_json()["tokenizer"].items()
    }
    rows |= {
        "codebook": f"2^{spec.tokenizer.code_bits}",
        "downsampling": spec.tokenizer.downsampling,
    }
    transformer = spec.to_json()["transformer"] or {}
    rows |= {f"transformer {name.replace('_', ' ')}": value for name, value in transformer.items()}
    if spec.image_size:
        rows["image size"] = list(spec.image_size)
    rows |= {f"{part} parameters": count for part, count in counts.items()}
    rows["bytes in float32"] = 4 * sum(counts.values())
    rows |= {f"default {name.replace('_', ' ')}": value for name, value in sampling.items()}
    rows |= {f"training {name.replace('_', ' ')}": value for name, value in training.items()}
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
