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
    Numbers,
    given,
    json_option,
    output_option,
)
from m2kit.cli.output import note, print_result, stages
from m2kit.cli.planning import show_ar_plan, show_tokenizer_plan
from m2kit.cli.training_options import (
    machine_options,
    preset,
    real,
    run_options,
    share,
    usage_checked,
    warp,
    whole,
)
from m2kit.errors import require
from m2kit.host import process_rank
from m2kit.progress import silent

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile


@click.group(cls=InOrder)
def train() -> None:
    """Train the tokenizer, then the autoregressive model on its tokens."""


def _before_loading(output: Path, resume: bool, files: tuple[str, ...]) -> None:
    """Refuse a run folder that the first process could not train in; then load what trains."""
    from m2kit.training.recipes.run_folder import check_run

    if not process_rank():
        check_run(output, None, resume, *files)
    for module in ("torch", "lightning", "sklearn", "matplotlib", "tensorboardX"):
        require(module, extra="train", what="training")


@train.command()
@preset("TOKENIZERS")
@run_options
@click.option(
    "--frames",
    type=COUNT,
    help="Frames of a clip: train a video tokenizer, on a folder of films.  [default: pictures]",
)
@whole("--base-channels", 32, "Channels after the first convolution, a multiple of 32.")
@click.option(
    "--channel-multipliers",
    type=INTEGERS,
    default="1,1,2,2",
    help="One per level, full resolution first.",
)
@whole("--blocks-per-level", 1, "Residual blocks per level.")
@whole("--code-bits", 8, "Bits of a code; the codebook has 2^bits entries.")
@whole("--epochs", 12, "Passes over the training images.")
@whole("--batch", 32, "Images per step.")
@real("--learning-rate", 1e-3, "Peak learning rate.")
@real("--warm-up", 0.6, "Epochs or steps until the learning rate's peak.", lowest=0)
@share("--floor", 0.05, "The learning rate's last value, as a share of its peak.")
@real("--clip", 1.0, "Greatest norm of the gradients; 0 is none.", lowest=0)
@warp(0.0)
@share("--ema-decay", 0.98, "Decay of the weights' moving average per step.")
@click.option(
    "--adversary",
    type=click.Choice(["none", "patch", "blur"]),
    default="none",
    help="Discriminator: PatchGAN, the blurring one of the 2^14 recipe, or none.",
)
@whole("--adversary-width", 64, "Channels after its first convolution.")
@real("--adversary-from", 0.0, "Epoch or step from which on it counts.", lowest=0)
@real("--adversary-weight", 0.1, "Weight of the generator loss.", lowest=0)
@real("--lecam-weight", 0.05, "Weight of LeCam in the discriminator's loss.", lowest=0)
@click.option(
    "--perceptual",
    type=click.Choice(["none", "lpips"]),
    default="none",
    help="LPIPS on VGG-16, whose two weights files must be there.",
)
@real("--perceptual-weight", 1.0, "Its weight.", lowest=0)
@click.option("--perceptual-vgg", type=PATH, help="torchvision's vgg16-397923af.pth.")
@click.option("--perceptual-heads", type=PATH, help="The lpips package's weights/v0.1/vgg.pth.")
@real("--l1-weight", 1.0, "Weight of the mean absolute difference.", lowest=0)
@real("--entropy-weight", 0.1, "Weight of the LFQ entropy loss.", lowest=0)
@real("--entropy-temperature", 0.01, "Temperature of its soft assignment.")
@click.option(
    "--entropy-group-bits",
    type=COUNT,
    help="Bits that count as independent of the others in the entropy of the mean code, for codes "
    "of too many bits.  [default: exact, over all codes]",
)
@click.option(
    "--over-processes",
    is_flag=True,
    help="Take the entropy of the mean code, and LeCam's averages, over all processes; as "
    "published each takes its own.",
)
@real("--commitment-weight", 0.25, "Weight of the commitment loss.", lowest=0)
@click.option(
    "--init",
    type=CHECKPOINT,
    help="Tokenizer file, or the address of a published one, whose weights to start from; of a "
    "training file the discriminator too.",
)
@click.option(
    "--freeze-encoder",
    is_flag=True,
    help="Train the decoder alone, so that tokens stay what --init makes them.",
)
@output_option("runs/tokenizer", "Run folder.")
@json_option
def tokenizer(
    output: Path,
    init: Path | HubFile | None,
    resume: bool,
    dry_run: bool,
    progress: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the image or video tokenizer; leaves tokenizer.pt, report.html, curves.png and
    samples.png."""
    from m2kit.training.recipes.run_folder import TOKENIZER_FILES
    from m2kit.training.recipes.settings import TokenizerSettings, digest

    with usage_checked(options):
        where = machine_options(options)
        vgg, heads = options.pop("perceptual_vgg"), options.pop("perceptual_heads")
        if options.pop("perceptual") == "none":
            options["perceptual_weight"] = 0.0
        TokenizerSettings(**options, init_sha256=None if init is None else "")
    _before_loading(output, resume, TOKENIZER_FILES)
    from m2kit.training.models.perceptual import perceptual_network
    from m2kit.training.recipes.machine import Machine
    from m2kit.training.recipes.tokenizer import train_tokenizer

    machine, network = Machine(**where), None
    if dry_run:
        files = vgg, heads
        return show_tokenizer_plan(options, machine, init, files, output, resume, as_json)
    start = local_file(init) if init is not None else None
    settings = TokenizerSettings(**options, init_sha256=digest(start) if start else None)
    if settings.perceptual_weight:
        network = perceptual_network(vgg, heads)
    with stages("steps") as begin:
        training = train_tokenizer(
            settings,
            output,
            resume=resume,
            machine=machine,
            perceptual=network,
            init=start,
            begin=begin if progress else silent,
            tell=note,
        )
    about = {"checkpoint": str(output / TOKENIZER_FILES[0])}
    shown = {
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
        "codebook perplexity": f"{training.codebook_perplexity:,}",
        "dead bits": ", ".join(map(str, training.dead_bits)) or "none",
        "held-out PSNR, of 8 bits a colour": f"{training.held_out_psnr_db} dB",
    }
    print_result(about | shown, as_json, about | training.to_json())


@train.command()
@preset("TRANSFORMERS")
@run_options
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=CHECKPOINT,
    default="runs/tokenizer/tokenizer.pt",
    help="Tokenizer file, or the address of a published one; its EMA weights are used.",
)
@whole("--width", 128, "Width of both transformers.")
@whole("--heads", 4, "Attention heads.")
@whole("--inter-layers", 4, "Layers over positions.")
@whole("--intra-layers", 1, "Layers over the sub-tokens of a position.")
@whole("--ffn-width", 384, "Hidden width of the feed-forward.")
@click.option("--bits", type=INTEGERS, default="3,5", help="Bits of each sub-token.")
@whole("--epochs", 36, "Passes over the training images.")
@whole("--batch", 64, "Images per step.")
@real("--learning-rate", 1e-3, "Peak learning rate.")
@share("--weight-decay", 0.05, "Of AdamW.")
@share("--dropout", 0.1, "On the input embedding and the residual branches.")
@share("--class-dropout", 0.1, "Share of images trained without their class.")
@real("--warm-up", 1.8, "Epochs or steps until the learning rate's peak.", lowest=0)
@share("--flat", 0.0, "Share of the time after that at the peak.")
@share("--floor", 0.1, "The learning rate's last value, as a share of its peak.")
@real("--clip", 1.0, "Greatest norm of the gradients; 0 is none.", lowest=0)
@warp(1.0)
@share("--ema-decay", 0.99, "Decay of the weights' moving average per step; 0 keeps none.")
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
    dry_run: bool,
    progress: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the autoregressive model; leaves ar.pt, report.html, curves.png and samples.png.

    --data takes a token cache of `m2kit encode --crops`, too: then no picture is read, and each
    step draws one of the crops that it has of each.
    """
    from m2kit.training.datasets.table import cache_path
    from m2kit.training.recipes.run_folder import AR_FILE
    from m2kit.training.recipes.settings import (
        OF_CROPS,
        ARSettings,
        settings_for,
        settings_of_cache,
    )

    cache = cache_path(options["data"])
    if cache is not None:
        told = given(*OF_CROPS)
        if told:
            raise click.UsageError(
                f"leave out {', '.join(told)}: {cache} is a token cache, whose crops are cut and "
                "encoded already."
            )
        options |= settings_of_cache(cache)
    with usage_checked(options):
        where = machine_options(options)
        guidance = m2kit.Sampling(guidance=options["guidance"]).resolve(len(options["bits"]), None)
        options["guidance"] = guidance.guidance
        ARSettings(tokenizer_sha256="", **options)
    _before_loading(output, resume, (AR_FILE,))
    from m2kit.training.recipes.ar import train_ar
    from m2kit.training.recipes.machine import Machine

    machine = Machine(**where)
    if dry_run:
        return show_ar_plan(options, machine, tokenizer_file, output, resume, as_json)
    path = local_file(tokenizer_file)
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
    about = {"checkpoint": str(output / AR_FILE)}
    shown = {
        "chosen step": training.chosen_step,
        "held-out bits per token": training.held_out_bits_per_token,
        "training bits per token": training.training_bits_per_token,
        "codebook usage on training images": f"{training.codebook_usage:.2%}",
    }
    print_result(about | shown, as_json, about | training.to_json())
