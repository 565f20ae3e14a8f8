"""export and build-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m2kit.cli.options import json_option, only_folder, spec_option
from m2kit.cli.output import note, print_result, size_text, stage
from m2kit.errors import require
from m2kit.manifest import BUNDLE, Manifest


@click.command()
@click.option(
    "--ckpt",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint: an AR file or a tokenizer file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Bundle folder; an older bundle is replaced.  [default: NAME.bundle in this directory]",
)
@spec_option
@click.option(
    "--weights",
    type=click.Choice(["ema", "live"]),
    help="Which weights of a tokenizer file.  [default: ema where it has them]",
)
@json_option
def export(
    ckpt: Path, output: Path | None, overrides: dict[str, Any], weights: str | None, as_json: bool
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, checked against PyTorch."""
    require("torch", extra="export,cpu", what="export")
    require("onnx_ir", extra="export,cpu", what="export")
    from m2kit.export.exporter import export_bundle
    from m2kit.training.checkpoint import read_checkpoint

    stage(f"reading {ckpt}")
    checkpoint = read_checkpoint(ckpt, overrides=overrides, weights=weights)
    for name, value in checkpoint.source["assumed"].items():
        note(f"assuming {name} {value}: the file does not tell (set it with --spec)")
    destination = output or Path(f"{ckpt.stem}.bundle")
    manifest = export_bundle(checkpoint, destination, ckpt.stem, stage)
    _print_folder(destination, manifest, as_json, {"weights": checkpoint.source["weights"]})


@click.command("build-engine")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Engine folder; an older engine is replaced.  [default: NAME.engine in this directory]",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime"]),
    default="onnxruntime",
    show_default=True,
    help="What will run the engine.",
)
@json_option
def build_engine(bundle: Path | None, output: Path | None, backend: str, as_json: bool) -> None:
    """Turn BUNDLE (by default the only one in this directory) into an engine."""
    from m2kit.engines.onnxruntime_builder import build_onnxruntime_engine

    bundle = only_folder(BUNDLE, bundle)
    name = bundle.resolve().name.removesuffix(".bundle")
    destination = output or Path(f"{name}.engine")
    manifest = build_onnxruntime_engine(bundle, destination, stage)
    _print_folder(destination, manifest, as_json, {"backend": backend})


def _print_folder(path: Path, manifest: Manifest, as_json: bool, more: dict[str, Any]) -> None:
    worst = max(
        (check.get("difference", 0.0) for check in manifest.parity["checks"].values()), default=0.0
    )
    size = sum(entry["bytes"] for entry in manifest.files.values())
    rows = {
        manifest.kind: str(path),
        **more,
        "size": size_text(size),
        "parity": f"{len(manifest.parity['checks'])} checks passed, largest difference {worst:.1e}",
    }
    value = {manifest.kind: str(path), **more, "bytes": size, "parity": manifest.parity}
    print_result(rows, as_json, value)
