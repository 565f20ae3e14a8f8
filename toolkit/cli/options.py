"""Options that several commands share, and the defaults that need no typing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import m2kit
from m2kit.cli.output import note, stages
from m2kit.errors import FolderError, InputError
from m2kit.host import check_threads
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import kind_of_folder
from m2kit.runtime.backend import CPU, CUDA
from m2kit.runtime.pictures import MOST_SIDE, colour_from_text

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine

OpenEngine = Callable[[], "Engine"]
Decorator = Callable[[Any], Any]
COUNT = click.IntRange(min=1)
SIDE = click.IntRange(1, MOST_SIDE)  # pixels
_MAKERS = {
    BUNDLE: "make one with `m2kit export --ckpt FILE`",
    ENGINE: "make one with `m2kit build-engine`",
}


class PathName(click.Path):
    """A path. "" would be the working directory, and "-" is elsewhere standard input or output,
    which nothing here reads or writes."""

    def __init__(self, **kind: bool) -> None:
        super().__init__(path_type=Path, **kind)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, if it is the name of something."""
        if str(value) in ("", "-"):
            self.fail(f"expected the name of a file or folder, found {value!r}", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathName()
INPUT = PathName(exists=True)  # what is read, so that a mistyped one is told at once
INPUT_FILE = PathName(exists=True, dir_okay=False)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
engine_option = click.option(
    "--engine", type=PATH, help="Engine folder.  [default: the one *.engine in this directory]"
)
provider_option = click.option(
    "--provider",
    type=click.Choice([CPU, CUDA]),
    help="Where an ONNX Runtime engine runs; never falls back.  [default: cpu; verify takes every "
    "one that is here]",
)
threads_option = click.option(
    "--threads",
    type=click.INT,
    callback=lambda ctx, param, value: check_threads(value),
    help="Threads of ONNX Runtime.  [default and most: the cores this process may use]",
)
batch_option = click.option(
    "--batch",
    type=COUNT,
    help="Images computed at once, at most; results do not depend on it.  [default: drawn 16, "
    "encoded and decoded what suits their size; a TensorRT engine, what it was built for]",
)


class Real(click.FloatRange):
    """A finite number in a range: click's own takes NaN in any range, and Inf in an open one."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number, if it is one."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, found {value!r}", param, ctx)
        return number


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Reads "1.9,2.0" as a tuple, and "2" as one number or, if `listed`, as a tuple of it."""

    name = "numbers"

    def __init__(self, kind: type, *, listed: bool = False) -> None:
        self._kind, self._listed = kind, listed

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """What help shows."""
        return "X[,X...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The numbers, if they are."""
        try:
            values = tuple(map(self._kind, value.split(",")))
        except ValueError:
            self.fail(f"expected {self._kind.__name__} numbers, found {value!r}", param, ctx)
        if self._kind is float and not all(map(math.isfinite, values)):
            self.fail(f"expected finite numbers, found {value!r}", param, ctx)
        return values if self._listed or len(values) > 1 else values[0]


class ColourName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Reads "white" or "#ff8000" as red, green and blue in 0..255."""

    name = "colour"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The three numbers, if it is a colour."""
        if not isinstance(value, str):
            return value
        try:
            return colour_from_text(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


INTEGERS = Numbers(int, listed=True)


def sizes_from_text(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    """Reads each "256,256" as (256, 256)."""
    try:
        sizes = tuple(tuple(map(int, value.split(","))) for value in values)
    except ValueError:
        sizes = ((),)
    if any(len(size) < 2 for size in sizes):
        raise click.BadParameter(
            "expected height and width such as 256,256, of clips frames before them, found "
            f"{' '.join(values)}"
        )
    return sizes


def size_from_text(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Reads one size, of an option that may be left out."""
    return None if value is None else sizes_from_text(ctx, param, (value,))[0]


def output_option(default: str, what: str) -> Decorator:
    """-o / --output with a default path."""
    return click.option("-o", "--output", type=PATH, default=default, help=what)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def given(*names: str) -> list[str]:
    """Those of some options, as "--seed", that stand in the command line of the command that runs.

    Args:
        names: As its function calls them.
    """
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


# the options of m2kit.Sampling; numbers are one value, or one per sub-token
sampling_options = together(
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        help="With image number and class it decides an image.",
    ),
    click.option(
        "--guidance",
        type=Numbers(float),
        help="Guidance scale, as 2 or per sub-token as 1.9,2.0; 1 is off.  "
        "[default of this and the next three: the model's own]",
    ),
    click.option("--temperature", type=Numbers(float), help="Divides the logits; 0.001 or more."),
    click.option("--top-k", type=Numbers(int), help="Keep the k likeliest; 0 is all."),
    click.option(
        "--top-p",
        type=Numbers(float),
        help="Keep the likeliest tokens up to this probability; 1 is all.",
    ),
    click.option(
        "--greedy",
        is_flag=True,
        help="Take the likeliest token at every place: all images of a class are then the same.",
    ),
)


def _opening(engine_parameter: Decorator) -> Decorator:
    """--provider, --threads, --check and what names an engine, handed on as one `open_engine`
    function."""

    def decorate(command: Callable[..., None]) -> Any:
        @engine_parameter
        @provider_option
        @threads_option
        @click.option("--check", is_flag=True, help="Hash the weights even if they were before.")
        @functools.wraps(command)
        def wrapped(
            engine: Path | None,
            provider: str | None,
            threads: int | None,
            check: bool,
            **options: Any,
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

        return wrapped

    return decorate


engine_options = _opening(engine_option)
engine_argument = _opening(click.argument("engine", required=False, type=PATH))


def warn_of_quality(path: Path, engine: Engine) -> None:
    """Say of an engine that was kept by --accept-quality what it is."""
    if engine.info is not None and engine.info.parity.passed is False:
        note(f"WARNING: {path} did not pass its quality gate (--accept-quality)")


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
