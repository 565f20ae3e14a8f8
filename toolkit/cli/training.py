"""train tokenizer and train ar. The defaults are those of the shipped example."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import m2kit
from m2kit.cli.checkpoints import CHECKPOINT, local_file
from m2kit.cli.commands import InOrder
from m2kit.cli.options import (
    COUNT,
    INTEGERS,
    Decorator,
    Numbers,
    Real,
    json_option,
    output_option,
    together,
)
from m2kit.cli.output import QUIET, note, print_result, verbosity
from m2kit.errors import require

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile


class DataSetName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A name in the table of data sets, which is read when it is asked for: it may have grown."""

    name = "data set"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """The names, for --help."""
        return f"[{'|'.join(_datasets())}]"

    def convert(self, value: Any, parameter: Any, context: Any) -> str:
        """The name, if the table has it."""
        return str(click.Choice(_datasets()).convert(value, parameter, context))


def _datasets() -> list[str]:
    from m2kit.training.datasets.table import DATASETS  # without torch: --help lists them

    return list(DATASETS)


_run_options = together(  # what both trainers take
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
)


def _whole(name: str, default: int, text: str) -> Decorator:
    return click.option(name, type=COUNT, default=default, help=text)


def _real(name: str, default: float, text: str, lowest: float = 1e-9) -> Decorator:
    return click.option(name, type=Real(lowest, 1e6), default=default, help=text)


def _share(name: str, default: float, text: str) -> Decorator:
    return click.option(name, type=Real(0, 1, max_open=True), default=default, help=text)


@click.group(cls=InOrder)
def train() -> None:
    """Train the tokenizer, then the autoregressive model on its tokens."""


def _require_training() -> None:
    for module in ("torch", "lightning", "sklearn", "matplotlib"):
        require(module, extra="train", what="training")


@train.command()
@_run_options
@_whole("--base-channels", 32, "Channels after the first convolution.")
@click.option(
    "--channel-multipliers",
    type=INTEGERS,
    default="1,1,2,2",
    help="One per level, full resolution first.",
)
@_whole("--blocks-per-level", 1, "Residual blocks per level.")
@_whole("--code-bits", 8, "Bits of a code; the codebook has 2^bits entries.")
@_whole("--epochs", 12, "Passes over the training images.")
@_whole("--batch", 32, "Images per step.")
@_real("--learning-rate", 1e-3, "Peak learning rate.")
@_share("--ema-decay", 0.98, "Decay of the weights' moving average per step.")
@_real("--entropy-weight", 0.1, "Weight of the LFQ entropy loss.", lowest=0)
@_real("--entropy-temperature", 0.01, "Temperature of its soft assignment.")
@_real("--commitment-weight", 0.25, "Weight of the commitment loss.", lowest=0)
@output_option("runs/tokenizer", "Run folder.")
@json_option
def tokenizer(output: Path, resume: bool, progress: bool, as_json: bool, **options: Any) -> None:
    """Train the image tokenizer; leaves tokenizer.pt, curves.png and samples.png."""
    _require_training()
    from m2kit.training.recipes.tokenizer import CHECKPOINT_FILE, TokenizerSettings, train_tokenizer

    settings = TokenizerSettings(**options)
    bar = progress and verbosity() > QUIET
    training = train_tokenizer(settings, output, resume=resume, progress=bar, tell=note)
    about = {"checkpoint": str(output / CHECKPOINT_FILE)}
    shown = {
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
        "held-out PSNR": f"{training.held_out_psnr_db} dB",
    }
    print_result(about | shown, as_json, about | training.to_json())


@train.command()
@_run_options
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=CHECKPOINT,
    default="runs/tokenizer/tokenizer.pt",
    help="Tokenizer file, or the address of a published one; its EMA weights are used.",
)
@_whole("--width", 128, "Width of both transformers.")
@_whole("--heads", 4, "Attention heads.")
@_whole("--inter-layers", 4, "Layers over positions.")
@_whole("--intra-layers", 1, "Layers over the sub-tokens of a position.")
@_whole("--ffn-width", 384, "Hidden width of the feed-forward.")
@click.option("--bits", type=INTEGERS, default="3,5", help="Bits of each sub-token.")
@_whole("--epochs", 36, "Passes over the training images.")
@_whole("--batch", 64, "Images per step.")
@_real("--learning-rate", 1e-3, "Peak learning rate.")
@_share("--weight-decay", 0.05, "Of AdamW.")
@_share("--dropout", 0.1, "On the input embedding and the residual branches.")
@_share("--class-dropout", 0.1, "Share of images trained without their class.")
@_share("--ema-decay", 0.99, "Decay of the weights' moving average per step.")
@_whole("--versions", 16, "Versions of each training image: as it is, then warped a little.")
@click.option(
    "--guidance",
    type=Numbers(float),
    default="2.0",
    help="Default guidance kept in the checkpoint.",
)
@output_option("runs/ar", "Run folder.")
@json_option
def ar(
    output: Path,
    tokenizer_file: Path | HubFile,
    resume: bool,
    progress: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the autoregressive model; leaves ar.pt, curves.png and samples.png."""
    _require_training()
    from m2kit.training.recipes.ar import CHECKPOINT_FILE, settings_for, train_ar

    guidance = m2kit.Sampling(guidance=options["guidance"]).resolve(len(options["bits"]), None)
    options["guidance"] = guidance.guidance
    path = local_file(tokenizer_file)
    settings = settings_for(path, **options)
    bar = progress and verbosity() > QUIET
    training = train_ar(settings, path, output, resume=resume, progress=bar, tell=note)
    about = {"checkpoint": str(output / CHECKPOINT_FILE)}
    shown = {
        "chosen epoch": training.chosen_epoch,
        "held-out bits per token": training.held_out_bits_per_token,
        "training bits per token": training.training_bits_per_token,
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
    }
    print_result(about | shown, as_json, about | training.to_json())
