"""What evaluate's commands share: options, the opened model, and how a result is told and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit.cli.checkpoints import checkpoint_options
from m2kit.cli.commands import Interrupted
from m2kit.cli.models import model_at, open_model
from m2kit.cli.options import (
    INPUT_FILE,
    PATH,
    SIDE,
    batch_option,
    json_option,
    provider_option,
    together,
)
from m2kit.cli.output import label, note, print_result
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

PROTOCOLS = ("adm", "open-magvit2", "pytorch-fid", "clean")
OF_CLIPS = "open-magvit2-video"
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


def evaluation_options(
    protocol: str | None, protocols: Sequence[str] = PROTOCOLS
) -> Callable[[Any], Any]:
    """What both evaluations take.

    Args:
        protocol: The default one; None is the official one of pictures, or of clips, which the
            command measures, too.
        protocols: That there are.
    """
    default = films = i3d = ""
    if protocol is None:
        default = f"  [default: open-magvit2, or of clips {OF_CLIPS}]"
        films, i3d = "; of a video tokenizer a folder of films", " of clips i3d,"
    return together(
        checkpoint_options,
        provider_option,
        click.option(
            "--data",
            type=DataSetName(),
            required=True,
            help=f"Data set to measure with{films}.",
        ),
        click.option(
            "--split",
            type=click.Choice(["all", "train", "held-out"]),
            default="all",
            help="Which half of it.",
        ),
        click.option(
            "--protocol",
            "name",
            type=click.Choice(protocols),
            default=protocol,
            help=f"Whose way of measuring is the default of the options below.{default}",
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
            help="Feature network: inception-pytorch-fid, inception-tf, efficientnet-lite0,"
            f"{i3d} or an ONNX file with a JSON file beside it.  [default: the protocol's]",
        ),
        click.option(
            "--feature-weights", type=INPUT_FILE, help="Its weights, where they lie elsewhere."
        ),
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


def metrics_option(names: Sequence[str]) -> Callable[[Any], Any]:
    """--metrics, of these names."""
    return click.option(
        "--metrics",
        type=Names(names),
        help=f"Those that must be computed, of {', '.join(names)}; one that cannot be is then an "
        "error.  [default: whatever can be]",
    )


def before_loading(output: Path | None) -> None:
    """Refuse an output that cannot be written; then load what measures."""
    if output is not None:
        check_output_folder(output)
    for module in ("torch", "torchmetrics"):
        require(module, extra="evaluate", what="evaluating")


@contextmanager
def opened(
    target: Path | HubFile, reading: JsonObject, provider: str | None
) -> Iterator[tuple[Engine, Measured]]:
    """The model, opened, and what a protocol tells of it."""
    found = model_at(target, reading, what="evaluating a checkpoint")
    if found is None:
        raise InputError(
            f"{target}: expected a checkpoint, bundle or engine; make one with `m2kit train`, "
            "`export` or `build-engine`"
        )
    if frames := found.source.assumed.get("frames"):
        note(
            f"assuming clips of {frames} frames: the checkpoint does not tell (set it with --spec)"
        )
    with open_model(target, found, provider) as engine:
        yield engine, _measured(target, found, engine)


def _measured(target: Path | HubFile, model: Manifest | Checkpoint, engine: Engine) -> Measured:
    from m2kit.training.evaluation.looking import Measured
    from m2kit.training.evaluation.protocol import printable

    active, source = engine.backend.active(), model.source
    if isinstance(model, Manifest):
        sha256 = sha256_of_json({name: entry.sha256 for name, entry in model.files.items()})
        precision = model.precision.value
    else:
        files = [source.checkpoint_sha256, source.tokenizer_sha256]
        sha256 = sha256_of_json(files) if source.tokenizer_sha256 else source.checkpoint_sha256
        precision = "float32"
    name = target.resolve().name if isinstance(target, Path) else str(target)
    where = [
        str(active[key]) for key in ("backend", "provider", "gpu", "emulated") if key in active
    ]
    return Measured(
        name=printable(name),
        sha256=sha256,
        weights=source.tokenizer_file[1],
        precision=precision,
        backend=", ".join(where),
    )


@contextmanager
def going_on(output: Path | None) -> Iterator[None]:
    """Says on Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if output is None:
            raise Interrupted("interrupted: nothing is kept; -o FOLDER keeps each part") from error
        raise Interrupted(
            f"interrupted: what was measured is kept in {output}. Give the same command again to "
            "go on."
        ) from error


def finish(result: Result, output: Path | None, as_json: bool, *, known: int = 0) -> None:
    """Print a result, and keep it.

    Args:
        result: What was measured.
        output: Where.
        as_json: Print it as JSON.
        known: How much of what could not be read was told before.
    """
    value, protocol = result.to_json(), result.protocol
    if output is not None:
        with new_file(output / RESULT_FILE) as path:
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    rows: JsonObject = {"protocol": protocol.id, protocol.words: f"{result.images:,}"}
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
    if unread := protocol.unread - known:
        them = "pictures" if protocol.clip is None else "films"
        note(f"{unread} {them} could not be read, and are left out")
    print_result(rows, as_json, value)
