"""generate: images of classes as a grid, or into a folder that a stopped command goes on with."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import m2kit
from m2kit.cli.class_names import class_ids
from m2kit.cli.options import (
    COUNT,
    PATH,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    output_option,
    sampling_options,
)
from m2kit.cli.output import print_result, stages
from m2kit.cli.picture_output import GRID_OR_FOLDER, PictureOutput
from m2kit.host import peak_bytes
from m2kit.outputs import check_output
from m2kit.records import JsonObject
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS, draw_images, notes_of_drawing
from m2kit.runtime.saving import notes_of_png
from m2kit.token_file import token_file_from_ids, write_tokens

_ROWS_WITHOUT_CLASS = 10
_GO_ON = "Give the same command again to go on."
_AGAIN = "Give the same command again to draw all; without --tokens it goes on."


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
@click.option("--columns", type=COUNT, help="Images in a row of a grid.  [default: n]")
@output_option("samples.png", f"Grid, a row of n images per class, {GRID_OR_FOLDER}")
@click.option("--tokens", type=PATH, help="Also write the ids, as .npz.")
@json_option
def generate(
    open_engine: OpenEngine,
    classes: tuple[str, ...],
    count: int,
    first_image: int,
    batch: int | None,
    columns: int | None,
    output: Path,
    tokens: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw images of classes, as one grid or as a folder of images.

    Into a folder any number can be drawn: memory does not depend on n. What is finished stays when
    the command is stopped, and is not drawn again when it is given again, as each file tells its
    class, number, sampling and engine. With --tokens all is drawn, and the ids are held until the
    end. Images per second count from the engine's opening, which the first batch waits for.
    """
    pictures = PictureOutput(output)
    if tokens:
        check_output(tokens, ".npz")
    with open_engine() as engine, stages("tokens") as begin:
        known = engine.transformer.classes
        chosen = class_ids(classes, known) or list(range(min(_ROWS_WITHOUT_CLASS, known)))
        sampling = m2kit.Sampling(**options)
        notes = notes_of_drawing(engine, sampling)
        resumes = pictures.is_folder and not tokens
        finished = _finished(output, chosen, first_image, count, notes) if resumes else set()
        began, total, ids = time.perf_counter(), len(chosen) * count, []
        batches = draw_images(
            engine,
            chosen,
            count,
            sampling,
            first_image=first_image,
            skip=finished,
            batch=batch,
            begin=begin,
        )
        size = engine.spec.size_of_grid(engine.transformer.grid)
        go_on = _AGAIN if tokens else _GO_ON
        with pictures.begun(total, size, columns=columns or count, go_on=go_on):
            pictures.skip(len(finished))
            for drawn in batches:
                for class_id, number, image in zip(
                    drawn.class_ids.tolist(), drawn.numbers.tolist(), drawn.images, strict=True
                ):
                    own = notes | {"class": class_id, "image_number": number}
                    pictures.add(_name(class_id, number), image, notes=own)
                if tokens:
                    ids.append(drawn.tokens)
            seconds = time.perf_counter() - began
            own = {"classes": chosen, "images_per_class": count, "first_image": first_image}
            pictures.finish(notes | own)
        active = engine.backend.active()
        if tokens:
            write_tokens(tokens, token_file_from_ids(np.concatenate(ids), engine.spec))
    result = {
        "images": total,
        "there_before": len(finished) or None,
        "classes": chosen,
        "image_numbers": f"class * 2^32 + {first_image}..{first_image + count - 1}",
        "seed": options["seed"],
        "images_per_second": round((total - len(finished)) / seconds, 4),
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


def _name(class_id: int, number: int) -> str:
    """Of an image's file, without suffix: class and place in it."""
    return f"{class_id:05d}_{number % IMAGES_OF_A_CLASS:06d}"


def _finished(
    folder: Path, classes: list[int], first_image: int, count: int, notes: JsonObject
) -> set[int]:
    """Numbers of these images that the folder has, drawn just so."""
    found, wanted = set(), set(classes)
    for name in os.listdir(folder) if folder.is_dir() else ():
        parts = re.fullmatch(r"([0-9]{5,10})_([0-9]{6,10})\.png", name)
        if not parts:
            continue
        class_id, place = map(int, parts.groups())
        number = class_id * IMAGES_OF_A_CLASS + place
        if class_id in wanted and first_image <= place < first_image + count:
            own = notes | {"class": class_id, "image_number": number}
            if name == f"{_name(class_id, number)}.png" and notes_of_png(folder / name) == own:
                found.add(number)
    return found
