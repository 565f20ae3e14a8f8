"""The options that both trainers take, and the kinds of those that only one takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from m2kit.cli.options import COUNT, SIDE, Decorator, Numbers, Real, given, together
from m2kit.errors import InputError, SpecError

PRESET = "m2kit.preset"  # of a click context
_IDLE: tuple[tuple[str, Callable[[dict[str, Any]], bool], tuple[str, ...]], ...] = (
    # where options are without effect, and which ones
    ("the learning rate falls in no drops", lambda o: o["decay"] != "drops", ("drops",)),
    ("the learning rate falls in drops", lambda o: o["decay"] == "drops", ("flat", "floor")),
    ("there is no warm-up", lambda o: not o["warm_up"], ("warm_up_from",)),
    ("the run's length is in steps", lambda o: o["steps"] is not None, ("epochs",)),
    (
        "there is no adversary",
        lambda o: o.get("adversary") == "none",
        ("adversary_width", "adversary_from", "adversary_weight", "lecam_weight"),
    ),
    (
        "there is no perceptual loss",
        lambda o: o.get("perceptual") == "none",
        ("perceptual_weight", "perceptual_vgg", "perceptual_heads"),
    ),
)


class DataSetName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A name in the table of data sets, which is read when it is asked for: it may have grown; or
    the path of a data set."""

    name = "data set"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """The names, for --help."""
        return f"[{'|'.join(_datasets())}|PATH]"

    def convert(self, value: Any, parameter: Any, context: Any) -> str:
        """The name, if the table has it, or the path, if something is there."""
        if value in _datasets() or Path(value).exists():
            return str(value)
        self.fail(
            f"{value!r} is no data set; expected {', '.join(_datasets())}, or the path of a folder "
            "of pictures by class, of .tar shards or of films, or of an .npz",
            parameter,
            context,
        )


def _datasets() -> list[str]:
    from m2kit.training.datasets.table import DATASETS  # without torch: --help lists them

    return list(DATASETS)


def preset(kind: str) -> Decorator:
    """An option whose value sets the defaults of the others."""

    def take(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
        from m2kit.training.recipes.presets import published

        if name is not None:
            context.meta[PRESET] = name
            values = published(name)
            if values.get("perceptual_weight"):
                values["perceptual"] = "lpips"
            context.default_map = {
                key: ",".join(map(str, value)) if isinstance(value, tuple) else value
                for key, value in values.items()
            }

    from m2kit.training.recipes import presets

    return click.option(
        "--preset",
        type=click.Choice(getattr(presets, kind)),
        is_eager=True,
        expose_value=False,
        callback=take,
        help="Take the defaults of a published recipe.  [default: those of the digits example]",
    )


run_options = together(  # what both trainers take
    click.option(
        "--size", type=SIDE, help="Height and width of the images.  [default: the pictures' own]"
    ),
    click.option(
        "--place",
        type=click.Choice(["random", "centre"]),
        default="random",
        help="Where training crops are taken.",
    ),
    click.option("--flip", is_flag=True, help="Mirror every second training image."),
    click.option(
        "--one-of-group",
        is_flag=True,
        help="An epoch has one picture of each group, such as the skin tones of one emoji.",
    ),
    click.option(
        "--warm-up-from",
        type=Real(0, 1),
        default=0.005,
        help="The learning rate's first value, as a share of its peak.",
    ),
    click.option("--steps", type=COUNT, help="Steps in all, in place of --epochs."),
    click.option(
        "--decay",
        type=click.Choice(["linear", "cosine", "drops"]),
        default="linear",
        help="How the learning rate falls.",
    ),
    click.option(
        "--drops",
        type=Numbers(float, listed=True),
        callback=lambda context, parameter, value: value or (),
        help="When it falls to a tenth, in epochs, or in steps with --steps.",
    ),
    click.option(
        "--accelerator",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        help="auto takes a GPU where there is one.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16", "fp64"]),
        default="fp32",
        help="bf16 and fp16 are mixed: weights stay float32.",
    ),
    click.option("--accumulate", type=COUNT, default=1, help="Parts a batch is computed in."),
    click.option(
        "--devices",
        type=COUNT,
        help="Processes of this machine, one for each device.  [default: what torchrun has "
        "started, or its GPUs, or one]",
    ),
    click.option(
        "--nodes",
        type=COUNT,
        default=1,
        help="Machines, on each of which torchrun starts the command. Never run on several.",
    ),
    click.option(
        "--strategy",
        type=click.Choice(["ddp", "sharded"]),
        default="ddp",
        help="What a device holds: everything, or a part of weights, averages and optimizers.",
    ),
    click.option(
        "--compile", is_flag=True, help="Compile the networks' blocks, which then compute faster."
    ),
    click.option(
        "--workers", type=click.IntRange(0, 256), default=0, help="Processes that read pictures."
    ),
    click.option(
        "--save-every", type=COUNT, help="Steps between two saves.  [default: --validate-every]"
    ),
    click.option("--log-every", type=COUNT, default=50, help="Steps between rows of metrics.csv."),
    click.option(
        "--validate-every",
        type=COUNT,
        help="Steps between measurements on held-out pictures.  [default: an epoch]",
    ),
    click.option(
        "--data",
        type=DataSetName(),
        default=lambda: _datasets()[0],
        show_default="the first",
        help="Data set to train on.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        help="Of the initial weights, the order and the dropout.",
    ),
    click.option(
        "--progress/--no-progress", default=True, show_default=False, help="Show a progress bar."
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with the run in the folder, with the same options; --epochs may be more.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print what would run: data, devices, batch, steps, learning rates, parameters, and "
        "memory of a device; train and write nothing. With --preset, what the published run "
        "took is assumed where --data or --tokenizer is not given.",
    ),
)


def whole(name: str, default: int, text: str) -> Decorator:
    """An option of a positive integer."""
    return click.option(name, type=COUNT, default=default, help=text)


def real(name: str, default: float, text: str, lowest: float = 1e-9) -> Decorator:
    """An option of a finite number from `lowest` up."""
    return click.option(name, type=Real(lowest, 1e9), default=default, help=text)


def share(name: str, default: float, text: str) -> Decorator:
    """An option of a number in [0, 1)."""
    return click.option(name, type=Real(0, 1, max_open=True), default=default, help=text)


def warp(default: float) -> Decorator:
    """The option of random warps."""
    return click.option(
        "--warp",
        type=Real(0, 1),
        default=default,
        help="How much images are turned, scaled and moved at random.",
    )


def machine_options(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of where to train, which leave the other options."""
    names = (
        *("accelerator", "nodes", "strategy", "precision", "accumulate"),
        *("workers", "compile", "save_every"),
    )
    return {"devices": options.pop("devices") or 0} | {name: options.pop(name) for name in names}


@contextlib.contextmanager
def usage_checked(options: dict[str, Any]) -> Iterator[None]:
    """For the settings that options make: what they cannot be is an error of usage, exit status 2,
    before anything is loaded that takes its time.

    Args:
        options: As click gives them; the drops of a preset go where another decay was chosen.

    Raises:
        click.UsageError: Some of those given are without effect, a batch cannot be divided, or the
            block raised InputError or SpecError.
    """
    from m2kit.training.recipes.division import Division

    for why, holds, names in _IDLE:
        told = given(*names)
        if told and holds(options):
            raise click.UsageError(f"leave out {', '.join(told)}: without effect, as {why}.")
    if options["decay"] != "drops":
        options["drops"] = ()
    processes = options["nodes"] * (options["devices"] or 1)  # at least
    try:
        Division(options["batch"], options["accumulate"], 0, processes)
        yield
    except (InputError, SpecError) as error:
        hint = f" ({error.option})" if error.option else ""
        raise click.UsageError(f"{error}{hint}") from error
