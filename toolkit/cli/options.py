"""Options that several commands share, and the defaults that need no typing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import m2kit
from m2kit.cli.output import note, stages
from m2kit.config import PRESETS, UNTOLD, overrides_from_text
from m2kit.errors import FolderError, InputError
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import kind_of_folder
from m2kit.records import JsonObject

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine

OpenEngine = Callable[[], "Engine"]
Command = TypeVar("Command", bound=Callable[..., Any])
_MAKERS = {
    BUNDLE: "make one with `m2kit export --ckpt FILE`",
    ENGINE: "make one with `m2kit build-engine`",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


provider_option = click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    help="Where an ONNX Runtime engine runs; never falls back.  [default: cpu; verify takes every "
    "one that is here]",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of ONNX Runtime.  [default: the cores this process may use]",
)


def _overrides(ctx: click.Context, param: click.Parameter, text: str | None) -> JsonObject:
    if text is None:
        return {}
    if text.lstrip().startswith("{"):
        return overrides_from_text(text)
    try:
        return overrides_from_text(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--spec: {text} is neither JSON nor a readable JSON file") from error


def checkpoint_options(command: Command) -> Command:
    """--preset, --spec, --weights and --tokenizer: how a checkpoint file is read."""
    for option in (
        click.option(
            "--tokenizer",
            type=click.Path(path_type=Path),
            help="Tokenizer file that replaces the tokenizer of an AR file.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["ema", "live"]),
            help="Which weights of a tokenizer file.  [default: ema where it has them]",
        ),
        click.option(
            "--spec",
            "overrides",
            metavar="FILE|JSON",
            callback=_overrides,
            help="The same told by a JSON file, or JSON such as "
            f'{{"heads": 20}}. Fields: {", ".join(UNTOLD)}.',
        ),
        click.option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            metavar="NAME",
            help="Published model that tells what a checkpoint's shapes do not: "
            f"{', '.join(PRESETS)}.  [default: the one of the same shapes]",
        ),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """--engine, --provider, --threads and --check, handed on as one `open_engine` function."""

    @functools.wraps(command)
    def wrapped(
        engine: Path | None, provider: str | None, threads: int | None, check: bool, **options: Any
    ) -> None:
        def open_engine() -> Engine:
            path = only_folder(ENGINE, engine)
            with stages() as begin:
                opened = m2kit.open_engine(
                    path, provider=provider, threads=threads, check=check, begin=begin
                )
            warn_of_quality(path, opened)
            return opened

        command(open_engine=open_engine, **options)

    for option in (
        click.option("--check", is_flag=True, help="Hash the weights even if they were before."),
        threads_option,
        provider_option,
        click.option(
            "--engine",
            type=click.Path(path_type=Path),
            help="Engine folder.  [default: the one *.engine in this directory]",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def warn_of_quality(path: Path, engine: Engine) -> None:
    """Say of an engine that was kept by --accept-quality what it is."""
    if engine.info is not None and engine.info.parity.passed is False:
        note(f"WARNING: {path} did not pass its quality gate (--accept-quality)")


def output_option(default: str, what: str) -> Callable[[Command], Command]:
    """-o / --output with a default path."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=default,
        show_default=True,
        help=what,
    )


batch_option = click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Images computed at once, at most; results do not depend on it.  [default: drawn 16, "
    "encoded and decoded what suits their size; a TensorRT engine, what it was built for]",
)


NUMBERS = "X[,X...]"  # how help shows what `numbers` reads


def numbers(kind: type) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that reads "2" or "1.9,2.0" as one number or a tuple of them."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            values = tuple(kind(part) for part in value.split(","))
        except ValueError as error:
            raise click.BadParameter(
                f"expected {kind.__name__} numbers, found {value!r}"
            ) from error
        return values[0] if len(values) == 1 else values

    return parse


def sampling_options(command: Command) -> Command:
    """The options of m2kit.Sampling; numbers are one value, or one per sub-token."""
    for option in (
        click.option("--greedy", is_flag=True, help="Take the likeliest token, draw nothing."),
        click.option(
            "--top-p",
            callback=numbers(float),
            metavar=NUMBERS,
            help="Keep the likeliest tokens up to this probability; 1 is all.",
        ),
        click.option(
            "--top-k",
            callback=numbers(int),
            metavar=NUMBERS,
            help="Keep the k likeliest; 0 is all.",
        ),
        click.option(
            "--temperature",
            callback=numbers(float),
            metavar=NUMBERS,
            help="Divides the logits; 0.001 or more.",
        ),
        click.option(
            "--guidance",
            callback=numbers(float),
            metavar=NUMBERS,
            help="Guidance scale, as 2 or per sub-token as 1.9,2.0; 1 is off.  "
            "[default for all four: the model's own]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="With image number and class it decides an image.",
        ),
    ):
        command = option(command)
    return command


def only_folder(kind: str, chosen: Path | None) -> Path:
    """The chosen folder, or the only bundle or engine of the working directory.

    Raises:
        FolderError: None is there, or several.
    """
    if chosen is not None:
        return chosen
    found = sorted(
        path
        for path in Path().iterdir()
        if not path.name.startswith(".") and kind_of_folder(path) == kind
    )
    if not found:
        raise FolderError(f"no {kind} in this directory: {_MAKERS[kind]}, or name one")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise FolderError(f"several {kind}s in this directory: name one of {names}")
    return found[0]
