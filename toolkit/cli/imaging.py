"""generate, encode, decode and reconstruct."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import m2kit
from m2kit.cli.options import (
    batch_option,
    class_list,
    engine_options,
    json_option,
    numbers,
    only_folder,
    output_option,
)
from m2kit.cli.output import print_result, progress_bar
from m2kit.errors import InputError
from m2kit.folders import check_output
from m2kit.images import psnr, read_images, write_grid
from m2kit.manifest import ENGINE
from m2kit.token_file import read_tokens, write_tokens

_ROWS_WITHOUT_CLASS = 10


def sampling_options(command: Any) -> Any:
    """The options of m2kit.Sampling; numbers are one value, or one per sub-token."""
    for option in (
        click.option("--greedy", is_flag=True, help="Take the likeliest token, draw nothing."),
        click.option(
            "--top-p",
            callback=numbers(float),
            help="Keep the likeliest tokens up to this probability; 1 is all.",
        ),
        click.option("--top-k", callback=numbers(int), help="Keep the k likeliest; 0 is all."),
        click.option("--temperature", callback=numbers(float), help="Divides the logits; > 0."),
        click.option(
            "--guidance",
            callback=numbers(float),
            help="Guidance scale, as 2 or per sub-token as 1.9,2.0; 1 is off.  "
            "[default for all four: the model's own]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="With the image number it decides an image.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@engine_options
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="ID[,ID...]",
    help="Class to draw; may be repeated.  [default: the first ten, a row each]",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Images per class.",
)
@sampling_options
@click.option(
    "--first-image",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of the first image, to draw a set in shards.",
)
@batch_option(16)
@output_option("samples.png", "Grid PNG, a row of n images per class.")
@click.option("--tokens", type=click.Path(path_type=Path), help="Also write the ids, as .npz.")
@json_option
def generate(
    engine: Path | None,
    provider: str,
    threads: int | None,
    classes: tuple[str, ...],
    count: int,
    first_image: int,
    batch: int,
    output: Path,
    tokens: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw images of classes and write them as one grid."""
    chosen = class_list(classes)
    check_output(output, ".png")
    if tokens:
        check_output(tokens, ".npz")
    path = only_folder(ENGINE, engine)
    with m2kit.open_engine(path, provider=provider, threads=threads) as opened:
        if opened.spec.transformer and not chosen:
            chosen = list(range(min(_ROWS_WITHOUT_CLASS, opened.spec.transformer.classes)))
        class_ids = np.repeat(np.array(chosen, dtype=np.int64), count)
        ids = _sample(opened, class_ids, m2kit.Sampling(**options), first_image, batch)
        images = np.concatenate([opened.decode(part) for part in _batches(ids, batch)])
        write_grid(output, images, columns=count)
        if tokens:
            write_tokens(tokens, ids, opened.spec)
    result = {
        "images": len(images),
        "classes": chosen,
        "seed": options["seed"],
        "output": str(output),
        "tokens": str(tokens) if tokens else None,
    }
    print_result(result, as_json)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@engine_options
@batch_option(16)
@output_option("tokens.npz", "Token file.")
@json_option
def encode(
    images: tuple[Path, ...],
    engine: Path | None,
    provider: str,
    threads: int | None,
    batch: int,
    output: Path,
    as_json: bool,
) -> None:
    """Turn IMAGES (of one size) into a token file."""
    with m2kit.open_engine(
        only_folder(ENGINE, engine), provider=provider, threads=threads
    ) as opened:
        pixels = read_images(images)
        ids = np.concatenate([opened.encode(part) for part in _batches(pixels, batch)])
        write_tokens(output, ids, opened.spec)
    print_result({"images": len(ids), "grid": list(ids.shape[1:3]), "output": str(output)}, as_json)


@click.command()
@click.argument("tokens", type=click.Path(path_type=Path))
@engine_options
@batch_option(16)
@click.option(
    "--columns", type=click.IntRange(min=1), default=8, show_default=True, help="Images per row."
)
@output_option("decoded.png", "Grid PNG.")
@json_option
def decode(
    tokens: Path,
    engine: Path | None,
    provider: str,
    threads: int | None,
    batch: int,
    columns: int,
    output: Path,
    as_json: bool,
) -> None:
    """Turn a token file into images."""
    with m2kit.open_engine(
        only_folder(ENGINE, engine), provider=provider, threads=threads
    ) as opened:
        ids = read_tokens(tokens, opened.spec)
        images = np.concatenate([opened.decode(part) for part in _batches(ids, batch)])
        write_grid(output, images, columns=columns)
    print_result({"images": len(images), "output": str(output)}, as_json)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@engine_options
@batch_option(16)
@output_option("reconstruction.png", "Grid PNG: each image with its reconstruction below.")
@json_option
def reconstruct(
    images: tuple[Path, ...],
    engine: Path | None,
    provider: str,
    threads: int | None,
    batch: int,
    output: Path,
    as_json: bool,
) -> None:
    """Encode and decode IMAGES (of one size), and report the PSNR."""
    with m2kit.open_engine(
        only_folder(ENGINE, engine), provider=provider, threads=threads
    ) as opened:
        pixels = read_images(images)
        rebuilt = np.concatenate(
            [opened.decode(opened.encode(part)) for part in _batches(pixels, batch)]
        )
        write_grid(output, np.concatenate([pixels, rebuilt]), columns=len(pixels))
    result = {
        "images": len(pixels),
        "psnr_db": round(psnr(pixels, rebuilt), 2),
        "output": str(output),
    }
    print_result(result, as_json)


def _batches(array: npt.NDArray[Any], batch: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(array), batch):
        yield array[start : start + batch]


def _sample(
    engine: Any, class_ids: npt.NDArray[np.int64], sampling: Any, first: int, batch: int
) -> npt.NDArray[np.int64]:
    """Tokens of all images, batch by batch, under a progress bar of positions."""
    transformer = engine.spec.transformer
    if transformer is None:
        engine.sample(class_ids, sampling)  # raises, saying what is missing
    if first + len(class_ids) > 2**64:
        raise InputError(f"--first-image {first} is too large: image numbers end at 2^64-1")
    numbers_of_images = np.array([first + i for i in range(len(class_ids))], dtype=np.uint64)
    streams = (
        engine.generate(part, sampling, image_numbers=numbers_of_part)
        for part, numbers_of_part in zip(
            _batches(class_ids, batch), _batches(numbers_of_images, batch), strict=True
        )
    )
    opened = next(streams)  # checks classes and options before a bar is drawn
    parts = []
    with progress_bar("drawing", len(class_ids) * transformer.positions, "tokens") as advance:
        for stream in itertools.chain([opened], streams):
            for drawn in stream:
                advance(len(drawn.tokens))
            parts.append(drawn.tokens)
    return np.concatenate(parts)
