"""evaluate reconstruction, generation and compare: numbers that tell what they are of."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import m2kit
from m2kit.cli.checkpoints import CHECKPOINT
from m2kit.cli.commands import InOrder
from m2kit.cli.evaluation_options import (
    OF_CLIPS,
    PROTOCOLS,
    RESULT_FILE,
    before_loading,
    evaluation_options,
    finish,
    going_on,
    metrics_option,
    opened,
)
from m2kit.cli.options import COUNT, INPUT, INPUT_FILE, given, json_option, sampling_options
from m2kit.cli.output import label, note, print_table, stages

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.evaluation.looking import Measured
    from m2kit.training.evaluation.made import Made

_PAIRS = 40  # pictures on a page, with their reconstructions
RECONSTRUCTION = (
    *("psnr_db", "ssim", "lpips", "rfid", "rfvd", "frechet_distance", "kid"),
    *("codebook_usage", "perplexity"),
)


GENERATION = (
    *("fid", "frechet_distance", "sfid", "kid", "inception_score", "precision", "recall"),
    *("class_accuracy", "near_copies"),
)


@click.group(cls=InOrder)
def evaluate() -> None:
    """Measure a model, so that anybody gets the same number and knows what it is of.

    Every result carries its protocol: data, crop, rounding, feature network, weights and counts,
    and an id made of them. docs/evaluation.md says what each number is.
    """


@evaluate.command()
@click.argument("model", metavar="MODEL", type=CHECKPOINT)
@evaluation_options(None, (*PROTOCOLS, OF_CLIPS))
@click.option(
    "--original-resolution",
    is_flag=True,
    help="Take pictures whole, each framed in mid-grey up to what the model takes, and cut back.",
)
@metrics_option(RECONSTRUCTION)
@click.option(
    "--perceptual-vgg", type=INPUT_FILE, help="torchvision's vgg16-397923af.pth, for LPIPS."
)
@click.option(
    "--perceptual-heads", type=INPUT_FILE, help="The lpips package's weights/v0.1/vgg.pth."
)
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
    reconstructions from originals, and the use of the codebook. A video tokenizer gives back the
    middle clip of every film of a folder.
    """
    if size is not None and original_resolution:
        raise click.UsageError("--size and --original-resolution exclude each other.")
    before_loading(output)
    from m2kit.training.datasets.table import dataset_named
    from m2kit.training.evaluation.looking import Looking
    from m2kit.training.evaluation.originals import originals_of
    from m2kit.training.evaluation.page import figure_of_pairs, write_result_page
    from m2kit.training.evaluation.reconstruction import Reconstruction

    with (
        going_on(output),
        opened(model, reading, provider) as (engine, measured),
        stages("images" if len(engine.spec.tokenizer.axes) == 2 else "films") as begin,
    ):
        find = partial(originals_of, engine, dataset_named(data), split=split, size=size)
        measuring = Reconstruction(
            engine,
            measured,
            partial(find, whole=original_resolution, begin=begin),
            name=name,
            uint8=uint8,
            looking=Looking(network, feature_weights, perceptual_vgg, perceptual_heads),
            metrics=metrics or (),
            batch=batch,
        )
        if left_out := measuring.originals.left_out:
            note(left_out)
        result = measuring.result(output, begin)
        if output is not None:
            figure = figure_of_pairs(*measuring.pairs(_PAIRS))
            write_result_page(output, result, figure, measuring.codebook)
    finish(result, output, as_json, known=measuring.originals.unread)


@evaluate.command()
@click.argument("model", metavar="[MODEL]", type=CHECKPOINT, required=False)
@evaluation_options("adm")
@metrics_option(GENERATION)
@click.option(
    "--per-class",
    type=COUNT,
    help="Images drawn of each class, by number as `m2kit sample` does.  [default: 50]",
)
@click.option(
    "--samples",
    type=INPUT,
    help="Measure what `m2kit sample` has drawn into a folder, or an .npz in ADM's form (arr_0, "
    "arr_1), in place of drawing; MODEL then only tells what has drawn them, and may be left out.",
)
@click.option(
    "--reference",
    type=INPUT_FILE,
    help="ADM's .npz of statistics of a data set, in place of those of --data.",
)
@click.option(
    "--classifier",
    type=INPUT_FILE,
    help="ONNX file that judges classes, as --network takes one.  [default: the data set's judge]",
)
@sampling_options
def generation(
    model: Path | HubFile | None,
    data: str,
    split: Any,
    name: Any,
    uint8: Any,
    size: int | None,
    metrics: tuple[str, ...] | None,
    network: str | None,
    feature_weights: Path | None,
    per_class: int | None,
    samples: Path | None,
    reference: Path | None,
    classifier: Path | None,
    provider: str | None,
    batch: int | None,
    output: Path | None,
    as_json: bool,
    seed: int,
    guidance: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    greedy: bool,
    **reading: Any,
) -> None:
    """Measure the images that a checkpoint, bundle or engine draws, against a data set's pictures.

    FID, sFID, KID, the Inception score, precision and recall, by one feature network; the share of
    images that a classifier takes for their class, and the share of near copies of training
    pictures.
    """
    drawing = ("per_class", "seed", "guidance", "temperature", "top_k", "top_p", "greedy", "batch")
    if samples is not None and given(*drawing):
        raise click.UsageError(f"leave out {', '.join(given(*drawing))}: --samples are drawn.")
    if model is None and samples is None:
        raise click.UsageError("expected MODEL, or --samples of what it has drawn.")
    before_loading(output)
    from m2kit.training.datasets.table import dataset_named
    from m2kit.training.evaluation.generation import Generation
    from m2kit.training.evaluation.looking import Looking
    from m2kit.training.evaluation.made import DrawnPictures, samples_at
    from m2kit.training.evaluation.page import figure_of_made, write_result_page
    from m2kit.training.evaluation.protocol import PROTOCOLS as RECORDS

    sampling = m2kit.Sampling(seed, guidance, temperature, top_k, top_p, greedy)
    usual = RECORDS[name].uint8
    made: Made
    with ExitStack() as stack:
        stack.enter_context(going_on(output))
        measured: Measured | None = None
        if model is not None:
            engine, measured = stack.enter_context(opened(model, reading, provider))
        if samples is not None:
            made, measured = samples_at(samples, uint8, measured, usual=usual)
        else:
            each = per_class or RECORDS[name].per_class
            made = DrawnPictures(engine, each, sampling, uint8 or usual, batch)
        assert measured is not None
        measuring = Generation(
            measured,
            made,
            dataset_named(data),
            split=split,
            size=size,
            reference=reference,
            name=name,
            looking=Looking(network, feature_weights),
            classifier=classifier,
            metrics=metrics or (),
        )
        with stages("images") as begin:
            result = measuring.result(output, begin)
        if output is not None:
            write_result_page(output, result, figure_of_made(measuring.shown))
    finish(result, output, as_json)


@evaluate.command()
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=INPUT)
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
    head = [f"{found[0].protocol.id}, {found[0].images:,} {found[0].protocol.words}", *labels]
    print_table(head, rows, as_json, value)


def _cell(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
