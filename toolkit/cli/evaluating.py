"""evaluate reconstruction, generation and compare: numbers that tell what they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit.cli.checkpoints import CHECKPOINT, checkpoint_options
from m2kit.cli.commands import InOrder
from m2kit.cli.models import model_at, open_model
from m2kit.cli.options import (
    PATH,
    SIDE,
    batch_option,
    json_option,
    provider_option,
    together,
)
from m2kit.cli.output import label, note, print_result, print_table, stages
from m2kit.cli.training_options import DataSetName
from m2kit.errors import InputError, require
from m2kit.hashes import sha256_of_json
from m2kit.manifest import Manifest
from m2kit.outputs import check_output_folder, new_file
from m2kit.records import JsonObject

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.checkpoints.reading import Checkpoint
    from m2kit.training.evaluation.looking import Measured
    from m2kit.training.evaluation.protocol import Result

_PROTOCOLS = ("adm", "open-magvit2", "pytorch-fid", "clean")
RESULT_FILE = "result.json"


class Names(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Reads "a,b" as names, each of them known."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """What help shows."""
        return "NAME[,NAME...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The names, each once."""
        names = tuple(dict.fromkeys(value.split(","))) if isinstance(value, str) else value
        for name in names:
            if name not in self._known:
                self.fail(f"expected {', '.join(self._known)}, found {name!r}", param, ctx)
        return names


@click.group(cls=InOrder)
def evaluate() -> None:
    """Measure a model, so that anybody gets the same number and knows what it is of.

    Every result carries its protocol: data, crop, rounding, feature network, weights and counts,
    and an id made of them. docs/evaluation.md says what each number is.
    """


def _evaluation_options(protocol: str) -> Callable[[Any], Any]:
    """What both evaluations take."""
    return together(
        click.argument("model", metavar="MODEL", type=CHECKPOINT),
        checkpoint_options,
        provider_option,
        click.option("--data", type=DataSetName(), required=True, help="Data set to measure with."),
        click.option(
            "--split",
            type=click.Choice(["all", "train", "held-out"]),
            default="all",
            help="Which half of it.",
        ),
        click.option(
            "--protocol",
            "name",
            type=click.Choice(_PROTOCOLS),
            default=protocol,
            help="Whose way of measuring is the default of the options below.",
        ),
        click.option(
            "--uint8",
            type=click.Choice(["truncate", "round"]),
            help="How floats become 8 bits a colour.  [default: the protocol's]",
        ),
        click.option(
            "--size",
            type=SIDE,
            help="Side of the square that is cut out of a picture's middle, after its shorter "
            "side is scaled to it.  [default: the model's, else the pictures' own]",
        ),
        click.option(
            "--network",
            help="Feature network: inception-pytorch-fid, inception-tf, efficientnet-lite0, or an "
            "ONNX file with a JSON file beside it.  [default: the protocol's]",
        ),
        click.option("--feature-weights", type=PATH, help="Its weights, where they lie elsewhere."),
        batch_option,
        click.option(
            "-o",
            "--output",
            type=PATH,
            help="Folder for result.json, report.html, and the sums so far, with which the same "
            "command goes on where it was stopped.",
        ),
        json_option,
    )


_RECONSTRUCTION = (
    *("psnr_db", "ssim", "lpips", "rfid", "frechet_distance", "kid"),
    *("codebook_usage", "perplexity"),
)


def _metrics_option(names: Sequence[str]) -> Callable[[Any], Any]:
    return click.option(
        "--metrics",
        type=Names(names),
        help=f"Those that must be computed, of {', '.join(names)}; one that cannot be is then an "
        "error.  [default: whatever can be]",
    )


@evaluate.command()
@_evaluation_options("open-magvit2")
@click.option(
    "--original-resolution",
    is_flag=True,
    help="Take pictures whole, each framed in mid-grey up to what the model takes, and cut back.",
)
@_metrics_option(_RECONSTRUCTION)
@click.option("--perceptual-vgg", type=PATH, help="torchvision's vgg16-397923af.pth, for LPIPS.")
@click.option("--perceptual-heads", type=PATH, help="The lpips package's weights/v0.1/vgg.pth.")
def reconstruction(
    model: Path | HubFile,
    data: str,
    split: Any,
    name: Any,
    uint8: Any,
    size: int | None,
    original_resolution: bool,
    metrics: tuple[str, ...] | None,
    network: str | None,
    feature_weights: Path | None,
    perceptual_vgg: Path | None,
    perceptual_heads: Path | None,
    provider: str | None,
    batch: int | None,
    output: Path | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Measure how a checkpoint, bundle or engine gives the pictures of a data set back.

    PSNR and SSIM of pictures of 8 bits a colour, LPIPS, the Frechet distance and KID of
    reconstructions from originals, and the use of the codebook.
    """
    if size is not None and original_resolution:
        raise click.UsageError("--size and --original-resolution exclude each other.")
    _before_loading(output)
    from m2kit.training.datasets.table import dataset_named
    from m2kit.training.evaluation.looking import Looking
    from m2kit.training.evaluation.originals import originals_of
    from m2kit.training.evaluation.reconstruction import Reconstruction

    with _opened(model, reading, provider) as (engine, measured), stages("images") as begin:
        originals = originals_of(
            engine, dataset_named(data), split=split, size=size, whole=original_resolution
        )
        measuring = Reconstruction(
            engine,
            measured,
            originals,
            name=name,
            uint8=uint8,
            looking=Looking(network, feature_weights, perceptual_vgg, perceptual_heads),
            metrics=metrics or (),
            batch=batch,
        )
        result = measuring.result(output, begin)
    _finish(result, output, as_json)


def _before_loading(output: Path | None) -> None:
    """Refuse an output that cannot be written; then load what measures."""
    if output is not None:
        check_output_folder(output)
    for module in ("torch", "torchmetrics"):
        require(module, extra="evaluate", what="evaluating")


@contextmanager
def _opened(
    target: Path | HubFile, reading: JsonObject, provider: str | None
) -> Iterator[tuple[Engine, Measured]]:
    """The model, opened, and what a protocol tells of it."""
    found = model_at(target, reading, what="evaluating a checkpoint")
    if found is None:
        raise InputError(
            f"{target}: expected a checkpoint, bundle or engine; make one with `m2kit train`, "
            "`export` or `build-engine`"
        )
    with open_model(target, found, provider) as engine:
        yield engine, _measured(target, found, engine)


def _measured(target: Path | HubFile, model: Manifest | Checkpoint, engine: Engine) -> Measured:
    from m2kit.training.evaluation.looking import Measured

    active, source = engine.backend.active(), model.source
    if isinstance(model, Manifest):
        sha256 = sha256_of_json({name: entry.sha256 for name, entry in model.files.items()})
        precision = model.precision.value
    else:
        files = [source.checkpoint_sha256, source.tokenizer_sha256]
        sha256 = sha256_of_json(files) if source.tokenizer_sha256 else source.checkpoint_sha256
        precision = "float32"
    name = target.resolve().name if isinstance(target, Path) else str(target)
    where = [str(active[key]) for key in ("backend", "provider", "gpu") if key in active]
    return Measured(
        name=ascii(name)[1:-1][:255],
        sha256=sha256,
        weights=source.tokenizer_file[1],
        precision=precision,
        backend=", ".join(where),
    )


def _finish(result: Result, output: Path | None, as_json: bool) -> None:
    """Print a result, and keep it."""
    value, protocol = result.to_json(), result.protocol
    if output is not None:
        with new_file(output / RESULT_FILE) as path:
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    rows: JsonObject = {"protocol": protocol.id, "images": f"{result.images:,}"}
    if protocol.network is not None:
        rows["features"] = protocol.network.name
    told: dict[str, str] = {}  # reason -> the metric that it was told of
    for name, number in result.metrics.items():
        if number is not None:
            rows[label(name)] = f"{number:.6g}"
            continue
        reason = result.reasons[name]
        rows[label(name)] = f"none, as {told[reason]}" if reason in told else f"none: {reason}"
        told.setdefault(reason, label(name))
    rows["output"] = output
    if protocol.unread:
        note(f"{protocol.unread} pictures could not be read, and are left out")
    print_result(rows, as_json, value)


@evaluate.command()
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=PATH)
@json_option
def compare(results: tuple[Path, ...], as_json: bool) -> None:
    """Put RESULTs, result.json files or folders with one, into one table.

    They must be of one protocol: other data, crops, rounding, weights, networks, counts or seeds
    are refused, with what differs. Models, precisions, backends and sampling may differ.
    """
    from m2kit.training.evaluation.protocol import check_same_protocol, model_labels, read_result

    paths = [path / RESULT_FILE if path.is_dir() else path for path in results]
    read = {str(path): read_result(path) for path in paths}
    check_same_protocol(read)
    found = list(read.values())
    labels = model_labels(found)
    names = dict.fromkeys(name for result in found for name in result.metrics)
    rows = [[label(name), *(_cell(result.metrics.get(name)) for result in found)] for name in names]
    value = {
        "protocol": found[0].protocol.id,
        "results": [
            {"path": path, "model": called, "metrics": result.metrics}
            for (path, result), called in zip(read.items(), labels, strict=True)
        ],
    }
    head = [f"{found[0].protocol.id}, {found[0].images:,} images", *labels]
    print_table(head, rows, as_json, value)


def _cell(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
