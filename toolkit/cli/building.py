"""init-checkpoint, export and build-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m2kit.cli.options import checkpoint_options, json_option, numbers, only_folder
from m2kit.cli.output import label, note, print_result, size_text, stages, weights_taken
from m2kit.config import PRESETS
from m2kit.errors import FolderError, InputError, require
from m2kit.manifest import BUNDLE, Manifest

_CAPABILITIES = ("8.6", "8.9")


@click.command("init-checkpoint")
@click.option(
    "--preset",
    required=True,
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help=f"The published model whose architecture it gets: {', '.join(PRESETS)}.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the weights.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Checkpoint; a file that is there is never replaced.  [default: NAME.pt, - as _]",
)
@json_option
def init_checkpoint(preset: str, seed: int, output: Path | None, as_json: bool) -> None:
    """Write random weights in the official layout, for trials and benchmarks."""
    require("torch", extra="export,cpu", what="init-checkpoint")
    from m2kit.training.random_weights import write_random_checkpoint

    path = output or Path(f"{preset.replace('-', '_')}.pt")
    if path.exists():
        raise FolderError(f"{path} exists, and random weights never replace a file; choose -o")
    note(f"drawing the weights of {preset} ...")
    write_random_checkpoint(path, PRESETS[preset].spec, seed)
    size = path.stat().st_size
    value = {"checkpoint": str(path), "preset": preset, "seed": seed, "bytes": size}
    print_result({**value, "bytes": size_text(size)}, as_json, value)


@click.command()
@click.option(
    "--ckpt",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint: an AR file or a tokenizer file, saved by torch or as safetensors.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Bundle folder; an older bundle is replaced.  [default: NAME.bundle in this directory]",
)
@checkpoint_options
@json_option
def export(ckpt: Path, output: Path | None, as_json: bool, **reading: Any) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, checked against PyTorch."""
    require("torch", extra="export,cpu", what="export")
    require("onnx_ir", extra="export,cpu", what="export")
    from m2kit.export.exporter import export_bundle
    from m2kit.training.checkpoint import read_checkpoint

    note(f"reading {ckpt} ...")
    checkpoint = read_checkpoint(ckpt, **reading)
    for name, value in checkpoint.source["assumed"].items():
        note(f"assuming {name} {value}: the file does not tell (set it with --spec)")
    destination = output or Path(f"{ckpt.stem}.bundle")
    with stages() as begin:
        manifest = export_bundle(checkpoint, destination, ckpt.stem, begin)
    _print_folder(destination, manifest, as_json, weights_taken(checkpoint.source))


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
    type=click.Choice(["onnxruntime", "tensorrt-rtx"]),
    default="onnxruntime",
    show_default=True,
    help="What will run the engine. tensorrt-rtx builds half-precision plans without a GPU; m2kit "
    "cannot run them yet.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="tensorrt-rtx: images at once, with guidance twice as many rows.  [default: 1]",
)
@click.option(
    "--image-size",
    callback=numbers(int),
    metavar="HEIGHT,WIDTH",
    help="tensorrt-rtx: pixels.  [default: the model's own]",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="tensorrt-rtx: of a target GPU; may be repeated.  [default: 8.6 and 8.9]",
)
@json_option
def build_engine(
    bundle: Path | None, output: Path | None, backend: str, as_json: bool, **static: Any
) -> None:
    """Turn BUNDLE (by default the only one in this directory) into an engine."""
    bundle = only_folder(BUNDLE, bundle)
    name = bundle.resolve().name.removesuffix(".bundle")
    destination = output or Path(f"{name}.engine")
    with stages() as begin:
        if backend == "onnxruntime":
            _refuse_static(static)
            from m2kit.engines.onnxruntime_builder import build_onnxruntime_engine

            manifest = build_onnxruntime_engine(bundle, destination, begin)
        else:
            require("onnx_ir", extra="rtx", what="building for tensorrt-rtx")
            from m2kit.engines.tensorrt_builder import build_tensorrt_rtx_engine

            manifest = build_tensorrt_rtx_engine(
                bundle,
                destination,
                batch=static["batch"] or 1,
                capabilities=static["capabilities"] or _CAPABILITIES,
                image_size=_two(static["image_size"]),
                begin=begin,
            )
    _print_folder(destination, manifest, as_json, {"backend": backend})


def _refuse_static(static: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in static.items() if value]
    if given:
        names = ", ".join(given).replace("--capabilities", "--compute-capability")
        raise InputError(f"{names}: an onnxruntime engine takes any batch and image size")


def _two(size: Any) -> tuple[int, int] | None:
    if size is not None and (not isinstance(size, tuple) or len(size) != 2):
        raise InputError(f"--image-size takes height and width such as 256,256, found {size}")
    return size


def _print_folder(path: Path, manifest: Manifest, as_json: bool, more: dict[str, Any]) -> None:
    worst = max(
        (check.get("difference", 0.0) for check in manifest.parity["checks"].values()), default=0.0
    )
    size = sum(entry["bytes"] for entry in manifest.files.values())
    checks = manifest.parity["checks"]
    outcome = f"{len(checks)} checks passed, largest difference {worst:.1e}"
    rows = {
        manifest.kind: str(path),
        **{label(name): value for name, value in more.items()},
        "size": size_text(size),
        "parity": outcome if checks else manifest.parity["state"],
    }
    value = {manifest.kind: str(path), **more, "bytes": size, "parity": manifest.parity}
    print_result(rows, as_json, value)
