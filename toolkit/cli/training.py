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
    PATH,
    Decorator,
    Numbers,
    Real,
    json_option,
    output_option,
    together,
)
from m2kit.cli.output import note, print_result, stages
from m2kit.errors import require
from m2kit.progress import silent

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.recipes.machine import Machine


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
            "of pictures by class, of .tar shards, or of an .npz",
            parameter,
            context,
        )


def _datasets() -> list[str]:
    from m2kit.training.datasets.table import DATASETS  # without torch: --help lists them

    return list(DATASETS)


def _preset(kind: str) -> Decorator:
    """An option whose value sets the defaults of the others."""

    def take(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
        from m2kit.training.recipes.presets import published

        if name is not None:
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


_run_options = together(  # what both trainers take
    click.option(
        "--size", type=COUNT, help="Height and width of the images.  [default: the pictures' own]"
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
        help="bf16 and fp16 are mixed: weights stay float32. fp16 was never run on hardware.",
    ),
    click.option("--accumulate", type=COUNT, default=1, help="Parts a batch is computed in."),
    click.option(
        "--workers", type=click.IntRange(0), default=0, help="Processes that read pictures."
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
)


def _whole(name: str, default: int, text: str) -> Decorator:
    return click.option(name, type=COUNT, default=default, help=text)


def _real(name: str, default: float, text: str, lowest: float = 1e-9) -> Decorator:
    return click.option(name, type=Real(lowest, 1e9), default=default, help=text)


def _share(name: str, default: float, text: str) -> Decorator:
    return click.option(name, type=Real(0, 1, max_open=True), default=default, help=text)


@click.group(cls=InOrder)
def train() -> None:
    """Train the tokenizer, then the autoregressive model on its tokens."""


def _require_training() -> None:
    for module in ("torch", "lightning", "sklearn", "matplotlib", "tensorboardX"):
        require(module, extra="train", what="training")


def _machine(options: dict[str, Any]) -> Machine:
    """Where to train, which these options say; they leave the others."""
    from m2kit.training.recipes.machine import Machine

    names = ("accelerator", "precision", "accumulate", "workers", "save_every")
    return Machine(**{name: options.pop(name) for name in names})


@train.command()
@_preset("TOKENIZERS")
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
@_real("--warm-up", 0.6, "Epochs or steps until the learning rate's peak.", lowest=0)
@_share("--floor", 0.05, "The learning rate's last value, as a share of its peak.")
@_real("--clip", 1.0, "Greatest norm of the gradients; 0 is none.", lowest=0)
@click.option(
    "--warp",
    type=Real(0, 1),
    default=0.0,
    help="How much images are turned, scaled and moved at random.",
)
@_share("--ema-decay", 0.98, "Decay of the weights' moving average per step.")
@click.option(
    "--adversary",
    type=click.Choice(["none", "patch", "blur"]),
    default="none",
    help="Discriminator: PatchGAN, the blurring one of the 2^14 recipe, or none.",
)
@_whole("--adversary-width", 64, "Channels after its first convolution.")
@_real("--adversary-from", 0.0, "Epoch or step from which on it counts.", lowest=0)
@_real("--adversary-weight", 0.1, "Weight of the generator loss.", lowest=0)
@_real("--lecam-weight", 0.05, "Weight of LeCam in the discriminator's loss.", lowest=0)
@click.option(
    "--perceptual",
    type=click.Choice(["none", "lpips"]),
    default="none",
    help="LPIPS on VGG-16, whose two weights files must be there.",
)
@_real("--perceptual-weight", 1.0, "Its weight.", lowest=0)
@click.option("--perceptual-vgg", type=PATH, help="torchvision's vgg16-397923af.pth.")
@click.option("--perceptual-heads", type=PATH, help="The lpips package's weights/v0.1/vgg.pth.")
@_real("--l1-weight", 1.0, "Weight of the mean absolute difference.", lowest=0)
@_real("--entropy-weight", 0.1, "Weight of the LFQ entropy loss.", lowest=0)
@_real("--entropy-temperature", 0.01, "Temperature of its soft assignment.")
@_real("--commitment-weight", 0.25, "Weight of the commitment loss.", lowest=0)
@output_option("runs/tokenizer", "Run folder.")
@json_option
def tokenizer(output: Path, resume: bool, progress: bool, as_json: bool, **options: Any) -> None:
    """Train the image tokenizer; leaves tokenizer.pt, curves.png and samples.png."""
    _require_training()
    from m2kit.training.models.perceptual import perceptual_network
    from m2kit.training.recipes.tokenizer import CHECKPOINT_FILE, TokenizerSettings, train_tokenizer

    machine, network = _machine(options), None
    vgg, heads = options.pop("perceptual_vgg"), options.pop("perceptual_heads")
    if options.pop("perceptual") == "none":
        options["perceptual_weight"] = 0.0
    settings = TokenizerSettings(**options)
    if settings.perceptual_weight:
        network = perceptual_network(vgg, heads)
    with stages("steps") as begin:
        training = train_tokenizer(
            settings,
            output,
            resume=resume,
            machine=machine,
            perceptual=network,
            begin=begin if progress else silent,
            tell=note,
        )
    about = {"checkpoint": str(output / CHECKPOINT_FILE)}
    shown = {
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
        "held-out PSNR": f"{training.held_out_psnr_db} dB",
    }
    print_result(about | shown, as_json, about | training.to_json())


@train.command()
@_preset("TRANSFORMERS")
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
@_real("--warm-up", 1.8, "Epochs or steps until the learning rate's peak.", lowest=0)
@_share("--flat", 0.0, "Share of the time after that at the peak.")
@_share("--floor", 0.1, "The learning rate's last value, as a share of its peak.")
@_real("--clip", 1.0, "Greatest norm of the gradients; 0 is none.", lowest=0)
@click.option(
    "--warp",
    type=Real(0, 1),
    default=1.0,
    help="How much images are turned, scaled and moved at random.",
)
@_share("--ema-decay", 0.99, "Decay of the weights' moving average per step; 0 keeps none.")
@click.option(
    "--versions",
    type=click.IntRange(0, 1000),
    default=16,
    help="Crops of each training image, encoded before training; 0 encodes anew at each step.",
)
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
    machine = _machine(options)
    settings = settings_for(path, **options)
    with stages("steps") as begin:
        training = train_ar(
            settings,
            path,
            output,
            resume=resume,
            machine=machine,
            begin=begin if progress else silent,
            tell=note,
        )
    about = {"checkpoint": str(output / CHECKPOINT_FILE)}
    shown = {
        "chosen step": training.chosen_step,
        "held-out bits per token": training.held_out_bits_per_token,
        "training bits per token": training.training_bits_per_token,
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
    }
    print_result(about | shown, as_json, about | training.to_json())
