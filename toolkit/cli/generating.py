"""generate: images of classes as a grid, or into a folder that a stopped command goes on with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

import m2kit
from m2kit.class_names import class_ids, names_in_notes
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
from m2kit.cli.preview import preview_of
from m2kit.host import peak_bytes
from m2kit.outputs import check_output
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS, draw_images, notes_of_drawing
from m2kit.runtime.picture_folder import drawn_before, picture_name, picture_notes
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
    help="Class to draw: a number, a range such as 0-9, a name that the model's training noted, "
    "an ImageNet name, or all; may be repeated.  "
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
@click.option("--preview", is_flag=True, help="Show the images in the terminal as they grow.")
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
    preview: bool,
    tokens: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw images of classes, as one grid or as a folder of images.

    Into a folder any number can be drawn: memory does not depend on n. What is finished stays when
    the command is stopped, and is not drawn again when it is given again, as each file tells its
    class, number, sampling and engine. A folder with another picture of such a name is refused.
    With --tokens all is drawn, and the ids are held until the end. Images per second count from the
    engine's opening, which the first batch waits for.

    --preview needs a terminal with kitty's, iTerm2's or sixel graphics, or one with 256 colours; it
    changes nothing of the images and takes a tenth of the time at most.
    """
    pictures = PictureOutput(output)
    if tokens:
        check_output(tokens, ".npz")
    console = Console(stderr=True)
    with (
        open_engine() as engine,
        stages("tokens", console) as begin,
        preview_of(engine, console, wanted=preview) as shown,
    ):
        known = engine.transformer.classes
        names = names_in_notes(engine.info.training, known) if engine.info else ()
        chosen = class_ids(classes, known, names) or list(range(min(_ROWS_WITHOUT_CLASS, known)))
        sampling = m2kit.Sampling(**options)
        notes = notes_of_drawing(engine, sampling)
        finished = set()
        if pictures.is_folder:
            there = drawn_before(output, chosen, notes, first_image=first_image, count=count)
            finished = set() if tokens else there
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
            watch=shown.watch,
        )
        size = engine.spec.size_of_grid(engine.transformer.grid)
        go_on = _AGAIN if tokens else _GO_ON
        with pictures.begun(total, size, columns=columns or count, go_on=go_on):
            pictures.skip(len(finished))
            for drawn in batches:
                for class_id, number, image in zip(
                    drawn.class_ids.tolist(), drawn.numbers.tolist(), drawn.images, strict=True
                ):
                    name = picture_name(class_id, number)
                    pictures.add(name, image, notes=picture_notes(notes, class_id, number))
                shown.finished(drawn.images)
                if tokens:
                    ids.append(drawn.tokens)
            seconds = time.perf_counter() - began
            of_grid = {"classes": chosen, "images_per_class": count, "first_image": first_image}
            pictures.finish(notes | of_grid)
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
