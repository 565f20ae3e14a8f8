"""generate."""

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
    OUTPUT,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    output_option,
    picture_folder,
    sampling_options,
)
from m2kit.cli.output import print_result, stages
from m2kit.host import peak_bytes
from m2kit.outputs import check_output
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS, DrawnImages, draw_images
from m2kit.runtime.images import check_grid, uint8_from_images, write_grid, write_pixels
from m2kit.token_file import token_file_from_ids, write_tokens

_ROWS_WITHOUT_CLASS = 10


@click.command()
@engine_options
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS[,CLASS...]",
    help="Class to draw: a number, a range such as 0-9, an ImageNet name, or all; may be "
    "repeated.  "
    "[default: the first ten, a row each]",
)
@click.option("-n", "count", type=COUNT, default=8, help="Images per class.")
@sampling_options
@click.option(
    "--first-image",
    type=click.IntRange(min=0),
    default=0,
    help="Place in its class of the first image of each class, to draw a set in shards.",
)
@batch_option
@output_option(
    "samples.png",
    "Grid, as .png, .jpg or .webp; or a folder (a name without suffix), which gets each image as "
    "a PNG as soon as its batch is finished.",
)
@click.option("--columns", type=COUNT, help="Images per row of the grid.  [default: n]")
@click.option("--tokens", type=OUTPUT, help="Also write the ids, as .npz.")
@json_option
def generate(
    open_engine: OpenEngine,
    classes: tuple[str, ...],
    count: int,
    first_image: int,
    batch: int | None,
    output: Path,
    columns: int | None,
    tokens: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw images of classes, as one grid or as a folder of images.

    Into a folder any number can be drawn: memory does not depend on n, and what is finished stays
    when the command is stopped. The ids of --tokens are held until the end, and written then.
    Images per second count from the engine's opening, which the first batch waits for.
    """
    folder = picture_folder(output)
    if tokens:
        check_output(tokens, ".npz")
    with open_engine() as engine:
        known = engine.transformer.classes
        chosen = class_ids(classes, known) or list(range(min(_ROWS_WITHOUT_CLASS, known)))
        sampling = m2kit.Sampling(**options)
        if not folder:
            size = engine.spec.size_of_grid(engine.transformer.grid)
            check_grid(output, len(chosen) * count, size, columns=columns or count)
        began = time.perf_counter()
        with stages("tokens") as begin:
            batches = draw_images(
                engine, chosen, count, sampling, first_image=first_image, batch=batch, begin=begin
            )
            images, ids = _collected(batches, folder, with_ids=tokens is not None)
        seconds = time.perf_counter() - began
        active = engine.backend.active()
        if images:
            write_pixels(output, np.concatenate(images), columns=columns or count)
        if tokens:
            write_tokens(tokens, token_file_from_ids(np.concatenate(ids), engine.spec))
    result = {
        "images": len(chosen) * count,
        "classes": chosen,
        "image_numbers": f"class * 2^32 + {first_image}..{first_image + count - 1}",
        "seed": options["seed"],
        "images_per_second": round(len(chosen) * count / seconds, 4),
        "output": str(output),
        "tokens": str(tokens) if tokens else None,
    }
    firsts = [class_id * IMAGES_OF_A_CLASS + first_image for class_id in chosen]
    details = {
        "image_numbers": [[first, first + count - 1] for first in firsts],
        "active": active,
        "peak_memory_bytes": peak_bytes(),
    }
    print_result(result, as_json, result | details)


def _collected(
    batches: Iterable[DrawnImages], folder: Path | None, *, with_ids: bool
) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.int64]]]:
    """Images and, if wanted, ids of all batches; with a folder, images go there instead, a file
    each, named by class and place in it."""
    images, ids = [], []
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for drawn in batches:
        if folder:
            for number, class_id, image in zip(
                drawn.numbers, drawn.class_ids, drawn.images, strict=True
            ):
                name = f"{class_id:05d}_{number % IMAGES_OF_A_CLASS:06d}.png"
                write_grid(folder / name, image[None], columns=1)
        else:
            images.append(uint8_from_images(drawn.images))
        if with_ids:
            ids.append(drawn.tokens)
    return images, ids
