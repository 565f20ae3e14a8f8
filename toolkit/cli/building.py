"""init-checkpoint, export and build-engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from m2kit import contract
from m2kit.cli.options import checkpoint_options, json_option, only_folder
from m2kit.cli.output import label, note, print_result, size_text, stages, weights_taken
from m2kit.config import PRESETS
from m2kit.errors import FolderError, InputError, require
from m2kit.manifest import BUNDLE, Manifest, read_manifest
from m2kit.progress import Begin
from m2kit.tolerances import QUANTIZED_TOLERANCES

_CAPABILITIES = ("8.6", "8.9")
_PRECISIONS = {"fp16": "float16", "fp32": "float32"}
_ENGINE_PRECISIONS = {  # of each backend, its default first
    "onnxruntime": {"fp32": "float32", "int8": "int8", "int4": "int4", "auto": "auto"},
    "tensorrt": _PRECISIONS,
    "tensorrt-rtx": _PRECISIONS,
}
_STATIC = {"precision", "batch", "image_size"}
_OPTIONS: dict[str, set[str]] = {  # what each backend's engines take
    "onnxruntime": {"precision", "accept_quality"},
    "tensorrt": _STATIC
    | {
        "version_compatible",
        "hardware_compatible",
        "opt_level",
        "workspace",
        "low_memory",
        "no_timing_cache",
    },
    "tensorrt-rtx": _STATIC | {"compute_capability"},
}


def _image_sizes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, int], ...]:
    """Reads "256,256" as (256, 256)."""
    try:
        sizes = [tuple(map(int, value.split(","))) for value in values]
    except ValueError:
        sizes = [()]
    if any(len(size) != 2 for size in sizes):
        raise click.BadParameter(
            f"expected height and width such as 256,256, found {' '.join(values)}"
        )
    return tuple((size[0], size[1]) for size in sizes)


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
    from m2kit.training.checkpoints.random_weights import write_random_checkpoint

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
@click.option(
    "--precision",
    type=click.Choice(list(_PRECISIONS)),
    default="fp32",
    show_default=True,
    help="fp32 is exact. fp16 is for TensorRT alone, to build on a device without onnx packages.",
)
@checkpoint_options
@json_option
def export(ckpt: Path, output: Path | None, precision: str, as_json: bool, **reading: Any) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, checked against PyTorch."""
    require("torch", extra="export,cpu", what="export")
    require("onnx_ir", extra="export,cpu", what="export")
    from m2kit.export.exporter import export_bundle
    from m2kit.training.checkpoints.reading import read_checkpoint

    note(f"reading {ckpt} ...")
    checkpoint = read_checkpoint(ckpt, **reading)
    for name, value in checkpoint.source["assumed"].items():
        note(f"assuming {name} {value}: the file does not tell (set it with --spec)")
    destination = output or Path(f"{ckpt.stem}.bundle")
    with stages() as begin:

        def exact(folder: Path) -> Manifest:
            return export_bundle(checkpoint, folder, ckpt.stem, begin)

        if precision == "fp32":
            manifest = exact(destination)
        else:
            from m2kit.engines.half_bundle import write_half_bundle

            manifest = write_half_bundle(exact, destination, begin)
    about = {"precision": precision} | weights_taken(checkpoint.source)
    _print_folder(destination, manifest, as_json, about)


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
    type=click.Choice(["auto", *_OPTIONS]),
    default="auto",
    show_default=True,
    help="What will run the engine. auto takes tensorrt where it and a GPU are, onnxruntime "
    "elsewhere. tensorrt-rtx also builds where there is no GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4", "auto"]),
    help="onnxruntime: fp32; int8 or int4 of the transformer's weights, if a quality gate passes; "
    "auto, the fastest of these that passes. TensorRT: fp16 of weights, matmuls and convolutions "
    "(norms, softmax, RoPE and logits are fp32 always), or fp32.  "
    "[default: fp32 for onnxruntime, fp16 for TensorRT]",
)
@click.option(
    "--accept-quality",
    is_flag=True,
    help="onnxruntime: keep an int8 or int4 engine that does not pass the quality gate.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="TensorRT: images at once, with guidance twice as many rows.  [default: 1]",
)
@click.option(
    "--image-size",
    multiple=True,
    callback=_image_sizes,
    metavar="HEIGHT,WIDTH",
    help="TensorRT: pixels of images to encode and decode beside the model's own; may be repeated.",
)
@click.option(
    "--compute-capability",
    multiple=True,
    metavar="X.Y",
    help="tensorrt-rtx: of a target GPU; may be repeated.  [default: 8.6 and 8.9]",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="tensorrt: plans that newer versions run too; slower.",
)
@click.option(
    "--hardware-compatible",
    type=click.Choice(["ampere", "same-capability"]),
    help="tensorrt: plans for any GPU from compute capability 8.0 on, or of the same one; slower.",
)
@click.option(
    "--opt-level",
    type=click.IntRange(0, 5),
    help="tensorrt: 0 builds fastest, 5 searches longest.  [default: TensorRT's own]",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="tensorrt: working memory a layer may use.  [default: all there is]",
)
@click.option(
    "--low-memory",
    is_flag=True,
    help="tensorrt: cap what the builder tries (256 MiB of workspace, level 2) for small devices.",
)
@click.option(
    "--no-timing-cache",
    is_flag=True,
    help="tensorrt: measure every layer anew; otherwise ~/.cache/m2kit/timing remembers.",
)
@json_option
def build_engine(
    bundle: Path | None, output: Path | None, backend: str, as_json: bool, **given: Any
) -> None:
    """Turn BUNDLE (by default the only one in this directory) into an engine."""
    bundle = only_folder(BUNDLE, bundle)
    name = bundle.resolve().name.removesuffix(".bundle")
    destination = output or Path(f"{name}.engine")
    given = {n: v for n, v in given.items() if v is not None and v is not False and v != ()}
    if backend == "auto":
        backend = _backend_here()
    _refuse_foreign(backend, given)
    with stages() as begin:
        if backend == "onnxruntime":
            manifest = _build_onnxruntime(bundle, destination, given, begin)
        else:
            manifest = _build_tensorrt(bundle, destination, backend, given, begin)
    _print_folder(destination, manifest, as_json, {"backend": backend} | _told(manifest))


def _told(manifest: Manifest) -> dict[str, Any]:
    """What a table says of an engine beside its size and parity."""
    build = manifest.build
    rows: dict[str, Any] = {"precision": manifest.precision}
    rows |= {n: build[n] for n in ("quantized_matmuls", "tried") if n in build}
    return {**rows, **manifest.parity.get("quality", {})}


def _backend_here() -> str:
    """tensorrt where its package and a GPU are, onnxruntime elsewhere; says which and why."""
    from m2kit.runtime.device import probe

    devices, reason = probe()
    if not devices:
        note(f"building for onnxruntime: {reason}")
    elif importlib.util.find_spec("tensorrt") is None:
        note(f"building for onnxruntime: {devices[0]} is here, the package tensorrt is not")
    else:
        note(f"building for tensorrt on {devices[0]}")
        return "tensorrt"
    return "onnxruntime"


def _build_onnxruntime(
    bundle: Path, destination: Path, given: dict[str, Any], begin: Begin
) -> Manifest:
    from m2kit.engines.onnxruntime_builder import build_onnxruntime_engine

    source = read_manifest(bundle, BUNDLE)
    spec = source.spec
    if spec.transformer and contract.ONNXRUNTIME not in source.lowerings:
        why = (
            f"heads of {spec.transformer.head_size} channels are no multiple of "
            f"{contract.FUSED_HEAD_SIZES}, which ONNX Runtime's fused attention needs"
        )
        if contract.ONNXRUNTIME in contract.lowerings(spec):
            why = "this bundle has no fused ones, which are faster; `m2kit export` writes them"
        note(f"taking the portable steps: {why}")
    precisions = _ENGINE_PRECISIONS["onnxruntime"]
    if "accept_quality" in given and given.get("precision") not in QUANTIZED_TOLERANCES:
        raise InputError(
            "--accept-quality is for --precision int8 or int4: auto keeps what passes, and fp32 "
            "has no quality gate"
        )
    manifest = build_onnxruntime_engine(
        bundle,
        destination,
        begin,
        precision=precisions[given.get("precision", "fp32")],
        accept_quality="accept_quality" in given,
    )
    if not manifest.parity["passed"]:
        note(f"WARNING: {destination} did not pass the quality gate and was kept all the same")
    return manifest


def _build_tensorrt(
    bundle: Path, destination: Path, backend: str, given: dict[str, Any], begin: Begin
) -> Manifest:
    from m2kit.engines.tensorrt_builder import build_tensorrt_engine
    from m2kit.engines.tensorrt_process import PlanOptions

    workspace = given.get("workspace")
    capabilities = given.get("compute_capability", _CAPABILITIES)
    options = PlanOptions(
        product=backend,
        capabilities=capabilities if backend == "tensorrt-rtx" else (),
        version_compatible=given.get("version_compatible", False),
        hardware_compatible=given.get("hardware_compatible"),
        optimization_level=given.get("opt_level"),
        workspace_bytes=workspace << 20 if workspace else None,
        low_memory=given.get("low_memory", False),
    )
    return build_tensorrt_engine(
        bundle,
        destination,
        options,
        batch=given.get("batch", 1),
        image_sizes=given.get("image_size", ()),
        precision=_PRECISIONS[given.get("precision", "fp16")],
        keep_timings="no_timing_cache" not in given,
        flags=_flags(given),
        begin=begin,
    )


def _flags(given: dict[str, Any]) -> list[str]:
    """The options that engine.json's own fields do not tell, as they were given."""
    words = []
    for name, value in given.items():
        if name in ("batch", "image_size"):
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        else:
            for item in value if isinstance(value, tuple) else [value]:
                words += [flag, str(item)]
    return words


def _refuse_foreign(backend: str, given: dict[str, Any]) -> None:
    foreign = [f"--{n.replace('_', '-')}" for n in given if n not in _OPTIONS[backend]]
    precision = given.get("precision")
    if precision is not None and precision not in _ENGINE_PRECISIONS[backend]:
        owners = " or ".join(b for b, own in _ENGINE_PRECISIONS.items() if precision in own)
        raise InputError(
            f"--precision {precision}: {backend} takes "
            f"{', '.join(_ENGINE_PRECISIONS[backend])}; choose one of these or --backend {owners}"
        )
    if foreign:
        owners = " or ".join(b for b, own in _OPTIONS.items() if set(given) <= own) or "TensorRT"
        what = "an onnxruntime engine takes any batch and image size"
        if backend != "onnxruntime":
            what = f"{backend} has no such option"
        raise InputError(f"{', '.join(foreign)}: {what}; choose --backend {owners}")


def _print_folder(path: Path, manifest: Manifest, as_json: bool, more: dict[str, Any]) -> None:
    size = sum(entry["bytes"] for entry in manifest.files.values())
    rows = {
        manifest.kind: str(path),
        **{label(name): value for name, value in more.items()},
        **({"tried": _trials(more["tried"])} if "tried" in more else {}),
        "size": size_text(size),
        "parity": _outcome(manifest.parity),
    }
    value = {manifest.kind: str(path), **more, "bytes": size, "parity": manifest.parity}
    print_result(rows, as_json, value)


def _trials(tried: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{name} {trial['position_ms']:.2f} ms a position"
        if trial["passed"]
        else f"{name} did not pass"
        for name, trial in tried.items()
    )


def _outcome(parity: dict[str, Any]) -> str:
    checks = list(parity["checks"].values())
    if not checks:
        return str(parity["state"])
    differences = [check["difference"] for check in checks if "difference" in check]
    worst = f", largest difference {max(differences):.1e}" if differences else ""
    failed = [name for name, check in parity["checks"].items() if not check["passed"]]
    passed = f"{len(checks) - len(failed)} of {len(checks)} checks passed"
    if failed:
        worst += f"; failed: {', '.join(failed)}"
    return f"{passed}, {parity['precision']}{worst}"
