"""encode: pictures to a token file, or a data set to a token cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from m2kit.cli.commands import Interrupted
from m2kit.cli.filming import FilmOptions, are_animations, are_films, encode_films
from m2kit.cli.imaging import batches, images_options, one_stage, refuse_own_input
from m2kit.cli.options import OpenEngine, given, json_option, output_option
from m2kit.cli.output import note, print_result, stages
from m2kit.outputs import check_output
from m2kit.runtime.arguments import check_pictures
from m2kit.runtime.picture_set import PictureSet
from m2kit.token_file import token_file_from_ids, write_tokens

_GO_ON = "the files that are whole stay; give the same command again to go on"
_NOTHING = "nothing was written; -o FOLDER keeps each file as it is finished"


@click.command()
@images_options
@click.option(
    "--crops",
    type=click.IntRange(1, 1000),
    help="IMAGES is a data set, as train takes it: encode so many crops of each of its training "
    "pictures, with labels, and the middle of those held out, into a token cache.",
)
@click.option(
    "--place",
    type=click.Choice(["random", "centre"]),
    default="random",
    help="Where crops are taken.",
)
@click.option("--flip", is_flag=True, help="Mirror every second crop.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of places and mirroring."
)
@output_option("tokens.npz", "Token file; with --crops also a folder of them.")
@json_option
def encode(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    background: tuple[int, int, int],
    resize: int | None,
    batch: int | None,
    output: Path,
    as_json: bool,
    crops: int | None,
    overlap: int,
    **cut: Any,
) -> None:
    """Turn IMAGES into a token file: pictures of one size, and folders of them; or films.

    A folder's pictures are taken in the order of their names. The next are read while one batch
    is encoded.

    Films, for a video tokenizer, are coded in clips of the length it was trained on, in memory that
    does not depend on theirs; each becomes a token file of its own, in a folder (-o NAME, without
    suffix) where they are several.

    With --crops, IMAGES is one data set, of which `m2kit train ar --data` trains without its
    pictures: a folder by class, .tar shards, an .npz or a name. --resize N then scales the shorter
    side, and the crop is taken of that. In a folder (-o NAME, without suffix) every file is whole
    when it is there, and a stopped command goes on when it is given again.
    """
    if crops is not None:
        _refuse(given("pad", "background", "overlap"), "train takes pictures as they are")
        _encode_data(
            open_engine, images, output, as_json, crops=crops, size=resize, batch=batch, **cut
        )
        return
    _refuse(given(*cut), "they are of a data set's crops; say how many")
    of_films = FilmOptions(overlap, pad, background, resize)
    if are_films(images, output):
        refuse_own_input(output, images)
        encode_films(open_engine, images, output, as_json, of_films)
        return
    check_output(output, ".npz")
    pictures = PictureSet(images, background, resize)
    with open_engine() as engine, stages("images") as begin:
        if len(engine.spec.tokenizer.axes) > 2 and are_animations(images):
            encode_films(lambda: engine, images, output, as_json, of_films)
            return
        check_pictures(engine.spec.tokenizer)
        begun, ids = one_stage(begin, "encoding", len(pictures)), []
        for _, whole in batches(pictures, engine, pad, batch):
            ids.append(engine.encode(whole, batch=batch, begin=begun))
        tokens = token_file_from_ids(np.concatenate(ids), engine.spec, pictures.size)
        write_tokens(output, tokens)
    grid = list(tokens.ids.shape[1:-1])
    print_result({"images": len(pictures), "grid": grid, "output": str(output)}, as_json)


def _refuse(options: list[str], why: str) -> None:
    if options:
        raise click.UsageError(f"leave out {', '.join(options)}: {why} with --crops.")


def _encode_data(
    open_engine: OpenEngine, images: tuple[Path, ...], output: Path, as_json: bool, **how: Any
) -> None:
    """Encode a data set and print what was encoded."""
    from m2kit.training.datasets.encoding import encode_data
    from m2kit.training.datasets.pictures import line_of_unread
    from m2kit.training.datasets.table import dataset_named

    if len(images) > 1:
        raise click.UsageError(f"with --crops, IMAGES is one data set, found {len(images)}.")
    refuse_own_input(output, images)
    data = dataset_named(str(images[0]))
    with open_engine() as engine, stages("crops") as begin:
        check_pictures(engine.spec.tokenizer)
        assert engine.info is not None
        try:
            done = encode_data(engine, engine.info.source, data, output, **how, begin=begin)
        except KeyboardInterrupt as error:
            cure = _NOTHING if output.suffix else _GO_ON
            raise Interrupted(f"interrupted: {cure}") from error
    if done.unread:
        note(line_of_unread(done.unread))
    result = {
        "pictures": done.pictures,
        "held out": done.held_out,
        "crops": done.crops,
        "files": done.files,
        "there before": done.there_before or None,
        "output": str(output),
    }
    print_result(result, as_json, {name.replace(" ", "_"): value for name, value in result.items()})
