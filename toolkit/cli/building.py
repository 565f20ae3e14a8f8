"""init-checkpoint, export and build-engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit import contract
from m2kit.build import BLOCK_SIZES, BuildOptions, Trial
from m2kit.cli.checkpoints import CHECKPOINT, checkpoint_options, local_file, read_named
from m2kit.cli.options import (
    PATH,
    given,
    json_option,
    only_folder,
    size_from_text,
    sizes_from_text,
)
from m2kit.cli.output import label, note, print_result, size_text, stages
from m2kit.config import PRESETS
from m2kit.errors import FolderError, require
from m2kit.manifest import BUNDLE, Manifest
from m2kit.manifest_file import check_model_folder, read_manifest
from m2kit.outputs import check_output_file
from m2kit.precision import AUTO, Precision
from m2kit.records import JsonObject, plain, to_json
from m2kit.runtime.backends import BACKENDS, backend_named, default_backend
from m2kit.runtime.machine import read_machine

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile

_BUNDLE_PRECISIONS = (Precision.FLOAT32.flag, Precision.FLOAT16.flag)


def _backend(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """One of the table of backends, as it is when the command runs."""
    if value not in (AUTO, *BACKENDS):
        choices = ", ".join(map(repr, (AUTO, *BACKENDS)))
        raise click.BadParameter(f"{value!r} is not one of {choices}.")
    return value


@click.command("init-checkpoint")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help=f"The published model whose architecture it gets: {', '.join(PRESETS)}.  "
    "[required, but with --inflate]",
)
@click.option(
    "--inflate",
    type=CHECKPOINT,
    help="Checkpoint of an image tokenizer: make a video tokenizer of it, which computes the same "
    "of one frame. With --preset it is checked to be that one.",
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
    type=PATH,
    help="Checkpoint; a file that is there is never replaced.  [default: NAME.pt, - as _; with "
    "--inflate alone FILE_video.pt]",
)
@json_option
def init_checkpoint(
    preset: str | None,
    inflate: Path | HubFile | None,
    seed: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write random weights in the official layout, for trials and benchmarks; or begin a video
    tokenizer with the weights of an image tokenizer, as the published one was begun."""
    require("torch", extra="export,cpu", what="init-checkpoint")
    if inflate is not None and given("seed"):
        raise click.UsageError("leave out --seed: with --inflate nothing is drawn.")
    if preset is not None:
        name = preset.replace("-", "_")
    elif inflate is not None:
        name = f"{inflate.stem}_video"
    else:
        raise click.UsageError("Missing option '--preset' or '--inflate'.")
    path = output or Path(f"{name}.pt")
    check_output_file(path)
    if path.exists():
        raise FolderError(f"{path} exists, and it is never replaced; choose another with -o")
    spec = None if preset is None else PRESETS[preset].spec
    told: JsonObject = {} if preset is None else {"preset": preset}
    if inflate is not None:
        from m2kit.training.checkpoints.inflation import write_inflated_checkpoint

        source = local_file(inflate)
        note(f"inflating {inflate} ...")
        write_inflated_checkpoint(path, source, spec)
        told["inflated_from"] = str(inflate)
    elif spec is not None:
        from m2kit.training.checkpoints.random_weights import write_random_checkpoint

        note(f"drawing the weights of {preset} ...")
        write_random_checkpoint(path, spec, seed)
        told["seed"] = seed
    size = path.stat().st_size
    value = {"checkpoint": str(path), **told, "bytes": size}
    rows = {label(name): item for name, item in value.items()} | {"bytes": size_text(size)}
    print_result(rows, as_json, value)


@click.command()
@click.option(
    "--ckpt",
    required=True,
    type=CHECKPOINT,
    help="Checkpoint: an AR file or a tokenizer file, saved by torch or as safetensors; or the "
    "address of a published one, hf://OWNER/REPO/FILE[@REVISION], which is downloaded once.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Bundle folder; an older bundle is replaced.  [default: NAME.bundle in this directory]",
)
@click.option(
    "--precision",
    type=click.Choice(_BUNDLE_PRECISIONS),
    default="fp32",
    show_default=True,
    help="fp32 is exact. fp16 is for TensorRT alone, to build on a device without onnx packages.",
)
@click.option(
    "--image-size",
    callback=size_from_text,
    metavar="H,W",
    help="Size of the pictures on which a tokenizer alone is compared with PyTorch, here and where "
    "its engines are built: height and width, of clips T,H,W.  [default: a small one]",
)
@checkpoint_options
@json_option
def export(
    ckpt: Path | HubFile,
    output: Path | None,
    precision: str,
    image_size: tuple[int, ...] | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, checked against PyTorch."""
    require("torch", extra="export,cpu", what="export")
    require("onnx_ir", extra="export,cpu", what="export")
    from m2kit.export.exporter import export_bundle

    destination = output or Path(f"{ckpt.stem}.bundle")
    check_model_folder(destination, BUNDLE)
    checkpoint = read_named(ckpt, **reading)
    for name, value in checkpoint.source.assumed.items():
        note(f"assuming {name} {value}: the file does not tell (set it with --spec)")
    with stages() as begin:

        def exact(folder: Path) -> Manifest:
            return export_bundle(checkpoint, folder, ckpt.stem, begin, size=image_size)

        if precision == Precision.FLOAT32.flag:
            manifest = exact(destination)
        else:
            from m2kit.engines.half_bundle import write_half_bundle

            manifest = write_half_bundle(exact, destination, begin)
    about = {"precision": precision} | checkpoint.source.weights_taken
    _print_folder(destination, manifest, as_json, about)


@click.command("build-engine")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Engine folder; an older engine is replaced.  [default: NAME.engine in this directory]",
)
@click.option(
    "--backend",
    callback=_backend,
    metavar=f"[{'|'.join((AUTO, *BACKENDS))}]",
    default="auto",
    show_default=True,
    help="What will run the engine. auto takes tensorrt where it and a GPU are, onnxruntime "
    "elsewhere. tensorrt-rtx also builds where there is no GPU.",
)
@click.option(
    "--precision",
    type=click.Choice([*(precision.flag for precision in Precision), AUTO]),
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
    "--block-size",
    type=click.Choice([*map(str, BLOCK_SIZES)]),
    callback=lambda ctx, param, value: value and int(value),
    help="onnxruntime: weights of an int4 engine that share a scale; the more, the faster and the "
    "less exact.  [default: 128]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="TensorRT: images at once, with guidance twice as many rows.  [default: 1]",
)
@click.option(
    "--image-size",
    "image_sizes",
    multiple=True,
    callback=sizes_from_text,
    metavar="HEIGHT,WIDTH",
    help="TensorRT: pixels of images to encode and decode beside the model's own, of clips "
    "T,H,W; may be repeated.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
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
    name = Path(os.path.realpath(bundle)).name.removesuffix(".bundle")
    destination = output or Path(f"{name}.engine")
    flag = given.pop("precision")
    precision = flag if flag in (None, AUTO) else Precision.of_flag(flag)
    options = BuildOptions(**given, precision=precision)
    if backend == AUTO:
        backend = _backend_here()
    kind = backend_named(backend)
    kind.complete(options)  # refuses before anything is read
    from m2kit.engines.building import build_engine as build

    if kind.lowering != contract.PORTABLE:
        _note_of_steps(read_manifest(bundle, BUNDLE), kind.lowering)
    with stages("steps") as begin:
        manifest = build(bundle, destination, backend, options, begin)
    if manifest.parity.passed is False:
        note(f"WARNING: {destination} did not pass the quality gate and was kept all the same")
    _print_folder(destination, manifest, as_json, {"backend": backend} | _told(manifest))


def _told(manifest: Manifest) -> JsonObject:
    """What a table says of an engine beside its size and parity."""
    build, quality = manifest.built, manifest.parity.quality
    told: JsonObject = {"precision": manifest.precision.value}
    if build.quantization is not None:
        told["quantized_matmuls"] = build.quantization.matmuls
    if build.tried:
        told["tried"] = plain(build.tried)
    return told | (to_json(quality) if quality else {})


def _backend_here() -> str:
    """What engines are built for here; says which and why."""
    machine = read_machine()
    backend, reasons = default_backend(machine)
    on = f" on {machine.gpus[0]}" if machine.gpus and not reasons else ""
    note(f"building for {backend}{on}" + (f": {reasons}" if reasons else ""))
    return backend


def _note_of_steps(source: Manifest, lowering: str) -> None:
    """Say why the faster, fused steps of a lowering are not taken, where they are not."""
    spec = source.spec
    if spec.transformer is None or lowering in source.lowerings:
        return
    why = (
        f"heads of {spec.transformer.head_size} channels are no multiple of "
        f"{contract.FUSED_HEAD_SIZES}, which ONNX Runtime's fused attention needs"
    )
    if lowering in contract.lowerings(spec):
        why = "this bundle has no fused ones, which are faster; `m2kit export` writes them"
    note(f"taking the portable steps: {why}")


def _print_folder(path: Path, manifest: Manifest, as_json: bool, more: JsonObject) -> None:
    size = sum(entry.bytes for entry in manifest.files.values())
    trials = manifest.build.tried if manifest.build else {}
    rows = {
        manifest.kind: str(path),
        **{label(name): value for name, value in more.items()},
        **({"tried": _trials(trials)} if trials else {}),
        "size": size_text(size),
        "parity": manifest.parity.summary,
    }
    parity = manifest.parity.with_result()
    value = {manifest.kind: str(path), **more, "bytes": size, "parity": parity}
    print_result(rows, as_json, value)


def _trials(tried: dict[str, Trial]) -> str:
    return ", ".join(
        f"{name} did not pass"
        if trial.position_ms is None
        else f"{name} {trial.position_ms:.2f} ms a position"
        for name, trial in tried.items()
    )
