"""verify and inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from m2kit.cli.options import PATH, json_option, provider_option
from m2kit.cli.output import label, print_result, size_text, stages
from m2kit.contract import TensorSpec, is_past
from m2kit.errors import FolderError
from m2kit.folder_check import check_folder
from m2kit.manifest import ENGINE, Manifest
from m2kit.manifest_file import kind_of_folder, read_manifest
from m2kit.precision import Precision
from m2kit.records import JsonObject, to_json


def manifest_of(path: Path) -> Manifest:
    """What a bundle or engine folder says of itself.

    Raises:
        FolderError: It is neither, or its manifest is damaged.
    """
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

    manifest = manifest_of(path)
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
    manifest = manifest_of(path)
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


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    """Names and shapes; a layer's cache is shown once."""
    shown = [f"{t.name} {t.shape}" for t in tensors if not is_past(t.name)]
    caches = [t.shape for t in tensors if is_past(t.name)]
    if caches:
        shown.append(f"{len(caches)} past.* {caches[0]}")
    return ", ".join(shown).replace("'", "")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
