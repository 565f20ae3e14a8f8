"""generate, encode, decode, reconstruct and convert-tokens."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import m2kit
from m2kit.cli.class_names import class_ids
from m2kit.cli.options import (
    COUNT,
    INTEGERS,
    PATH,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    output_option,
    sampling_options,
    together,
)
from m2kit.cli.output import print_result, stages
from m2kit.families.sign_bits import BIT_ORDERS, bits_of
from m2kit.host import peak_bytes
from m2kit.outputs import check_output
from m2kit.runtime.drawing import DrawnImages, draw_images
from m2kit.runtime.images import cropped, padded, psnr, read_images, write_grid
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

_ROWS_WITHOUT_CLASS = 10
_images_options = together(
    click.argument("images", nargs=-1, required=True, type=PATH),
    engine_options,
    click.option(
        "--pad",
        is_flag=True,
        help="Frame images in mid-grey up to a size the model takes; decoding crops them back.",
    ),
    batch_option,
)


@click.command()
@engine_options
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS[,CLASS...]",
    help="Class to draw, a number or an ImageNet name; may be repeated.  "
    "[default: the first ten, a row each]",
)
@click.option("-n", "count", type=COUNT, default=8, help="Images per class.")
@sampling_options
@click.option(
    "--first-image",
    type=click.IntRange(min=0),
    default=0,
    help="Number of the first image, to draw a set in shards.",
)
@batch_option
@output_option(
    "samples.png",
    "Grid PNG, a row of n images per class; or a folder (a name without suffix), which gets each "
    "image as soon as its batch is finished.",
)
@click.option("--tokens", type=PATH, help="Also write the ids, as .npz.")
@json_option
def generate(
    open_engine: OpenEngine,
    classes: tuple[str, ...],
    count: int,
    first_image: int,
    batch: int | None,
    output: Path,
    tokens: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw images of classes, as one grid or as a folder of images.

    Into a folder any number can be drawn: memory does not depend on n, and what is finished stays
    when the command is stopped. The ids of --tokens are held until the end, and written then.
    Images per second count from the engine's opening, which the first batch waits for.
    """
    folder = None if output.suffix else output
    check_output(folder / "image.png" if folder else output, ".png")
    if tokens:
        check_output(tokens, ".npz")
    with open_engine() as engine:
        known = engine.transformer.classes
        chosen = class_ids(classes, known) or list(range(min(_ROWS_WITHOUT_CLASS, known)))
        sampling = m2kit.Sampling(**options)
        began = time.perf_counter()
        with stages("tokens") as begin:
            batches = draw_images(
                engine, chosen, count, sampling, first_image=first_image, batch=batch, begin=begin
            )
            images, ids = _collected(batches, folder, with_ids=tokens is not None)
        seconds = time.perf_counter() - began
        active = engine.backend.active()
        if images:
            write_grid(output, np.concatenate(images), columns=count)
        if tokens:
            write_tokens(tokens, token_file_from_ids(np.concatenate(ids), engine.spec))
    result = {
        "images": len(chosen) * count,
        "classes": chosen,
        "seed": options["seed"],
        "images_per_second": round(len(chosen) * count / seconds, 4),
        "output": str(output),
        "tokens": str(tokens) if tokens else None,
    }
    details = {"active": active, "peak_memory_bytes": peak_bytes()}
    print_result(result, as_json, result | details)


def _collected(
    batches: Iterable[DrawnImages], folder: Path | None, *, with_ids: bool
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.int64]]]:
    """Images and, if wanted, ids of all batches; with a folder, images go there instead, a file
    each, named by number and class."""
    images, ids = [], []
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for drawn in batches:
        if folder:
            for number, class_id, image in zip(
                drawn.numbers, drawn.class_ids, drawn.images, strict=True
            ):
                write_grid(folder / f"{number:06d}_{class_id}.png", image[None], columns=1)
        else:
            images.append(drawn.images)
        if with_ids:
            ids.append(drawn.tokens)
    return images, ids


@click.command()
@_images_options
@output_option("tokens.npz", "Token file.")
@json_option
def encode(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    batch: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Turn IMAGES (of one size) into a token file."""
    check_output(output, ".npz")
    with open_engine() as engine:
        pixels = read_images(images)
        whole = padded(pixels, engine.spec.tokenizer.strides) if pad else pixels
        with stages("images") as begin:
            ids = engine.encode(whole, batch=batch, begin=begin)
        write_tokens(output, token_file_from_ids(ids, engine.spec, pixels.shape[2:]))
        grid = engine.spec.grid_of_size(whole.shape[2:])
    print_result({"images": len(ids), "grid": list(grid), "output": str(output)}, as_json)


@click.command()
@click.argument("tokens", type=PATH)
@engine_options
@batch_option
@click.option("--columns", type=COUNT, default=8, help="Images per row.")
@output_option("decoded.png", "Grid PNG.")
@json_option
def decode(
    open_engine: OpenEngine,
    tokens: Path,
    batch: int | None,
    columns: int,
    output: Path,
    as_json: bool,
) -> None:
    """Turn a token file into images."""
    check_output(output, ".png")
    with open_engine() as engine:
        content = read_tokens_of(tokens, engine.spec)
        with stages("images") as begin:
            images = engine.decode(content.ids, batch=batch, begin=begin)
        write_grid(output, cropped(images, content.image_size), columns=columns)
    print_result({"images": len(images), "output": str(output)}, as_json)


@click.command()
@_images_options
@output_option("reconstruction.png", "Grid PNG: each image with its reconstruction below.")
@json_option
def reconstruct(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    batch: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Encode and decode IMAGES (of one size), and report the PSNR."""
    check_output(output, ".png")
    with open_engine() as engine:
        pixels = read_images(images)
        whole = padded(pixels, engine.spec.tokenizer.strides) if pad else pixels
        with stages("images") as begin:
            ids = engine.encode(whole, batch=batch, begin=begin)
            decoded = engine.decode(ids, batch=batch, begin=begin)
        rebuilt = cropped(decoded, pixels.shape[2:])
        write_grid(output, np.concatenate([pixels, rebuilt]), columns=len(pixels))
    quality = round(psnr(pixels, rebuilt), 2)
    print_result({"images": len(pixels), "psnr_db": quality, "output": str(output)}, as_json)


@click.command("convert-tokens")
@click.argument("tokens", type=PATH)
@click.option(
    "--bits",
    required=True,
    type=INTEGERS,
    help="Bits of each sub-token, as 6,12 (published AR models), 9,9 (V0.1) or 18.",
)
@click.option(
    "--bit-order",
    required=True,
    type=click.Choice(BIT_ORDERS),
    help="Whether a sub-token's first code channel is its lowest bit (lsb) or highest (msb, V0.1).",
)
@output_option("converted.npz", "Token file.")
@json_option
def convert_tokens(
    tokens: Path, bits: tuple[int, ...], bit_order: str, output: Path, as_json: bool
) -> None:
    """Write a token file in another split and bit order; the codes stay what they are."""
    check_output(output, ".npz")
    content = read_tokens(tokens)
    write_tokens(output, converted_tokens(content, bits, bit_order))
    result = {
        "images": len(content.ids),
        "from": f"{','.join(map(str, bits_of(content.vocabularies)))} {content.bit_order}",
        "to": f"{','.join(map(str, bits))} {bit_order}",
        "output": str(output),
    }
    print_result(result, as_json)
