"""decode, reconstruct and convert-tokens, and what encode shares with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from m2kit.cli.filming import (
    FilmOptions,
    are_films,
    decode_film,
    names_a_film,
    overlap_option,
    reconstruct_film,
)
from m2kit.cli.options import (
    COUNT,
    INTEGERS,
    PATH,
    ColourName,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    output_option,
    together,
)
from m2kit.cli.output import print_result, stages
from m2kit.cli.picture_output import GRID_OR_FOLDER, PictureOutput
from m2kit.errors import FolderError
from m2kit.families.sign_bits import BIT_ORDERS, bits_of
from m2kit.outputs import check_output
from m2kit.progress import Advance, Begin
from m2kit.runtime.arguments import check_pictures
from m2kit.runtime.images import cropped, padded, padded_size, psnr
from m2kit.runtime.picture_folder import check_names_free
from m2kit.runtime.picture_set import PictureSet
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    write_tokens,
)

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine

_AGAIN = "Give the same command again with another folder (-o) to make them all."
_columns_option = click.option(
    "--columns", type=COUNT, default=8, help="Images in a row of a grid."
)
images_options = together(
    click.argument("images", nargs=-1, required=True, type=PATH),
    engine_options,
    click.option(
        "--pad",
        is_flag=True,
        help="Frame images in mid-grey up to a size the model takes; decoding crops them back.",
    ),
    click.option(
        "--background",
        type=ColourName(),
        default="white",
        help="What transparent pixels are laid on: a name, or #RRGGBB.",
    ),
    click.option(
        "--resize",
        type=COUNT,
        metavar="N",
        help="Scale the shorter side to N pixels and take the middle square.  [default: as it is]",
    ),
    overlap_option,
    batch_option,
)


@click.command()
@click.argument("tokens", type=PATH)
@engine_options
@batch_option
@_columns_option
@output_option("decoded.png", f"Grid, {GRID_OR_FOLDER}")
@json_option
def decode(
    open_engine: OpenEngine,
    tokens: Path,
    batch: int | None,
    columns: int,
    output: Path,
    as_json: bool,
) -> None:
    """Turn a token file into images, or a film: its name ends in .mp4, .mkv, .gif, .webp or .png.

    A film has the frame rate, or the times of frames, of the one that was encoded.
    """
    refuse_own_input(output, [tokens])
    pictures = None if names_a_film(output) else PictureOutput(output)
    with open_engine() as engine, stages("images") as begin:
        content = read_tokens_of(tokens, engine.spec)
        if pictures is None or content.film is not None:
            decode_film(engine, content, output, as_json, begin)
            return
        check_pictures(engine.spec.tokenizer)
        count, size = len(content.ids), content.image_size
        at_once = engine.compute_at_once(engine.spec.size_of_grid(content.ids.shape[1:-1]), batch)
        names = [f"{index:06d}.png" for index in range(count)]
        if pictures.is_folder:
            check_names_free(output, names)
        with pictures.begun(count, size, columns=columns, go_on=_AGAIN):
            advance = begin("decoding", count)
            for start in range(0, count, at_once):
                decoded = engine.decode(content.ids[start : start + at_once], batch=batch)
                for index, image in enumerate(cropped(decoded, size), start):
                    pictures.add(names[index], image)
                advance(len(decoded))
            pictures.finish()
    print_result({"images": count, "output": str(output)}, as_json)


@click.command()
@images_options
@_columns_option
@output_option(
    "reconstruction.png", f"Grid, each image with its reconstruction below, {GRID_OR_FOLDER}"
)
@json_option
def reconstruct(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    background: tuple[int, int, int],
    resize: int | None,
    batch: int | None,
    columns: int,
    output: Path,
    as_json: bool,
    overlap: int,
) -> None:
    """Encode and decode IMAGES, pictures of one size and folders of them, and report the PSNR.

    A folder as output gets the reconstructions alone. IMAGES may be a film, too, for a video
    tokenizer: the output, such as film.mp4, shows it on the left and its reconstruction on the
    right.
    """
    if are_films(images, output):
        refuse_own_input(output, images)
        how = FilmOptions(overlap, pad, background, resize)
        reconstruct_film(open_engine, images, output, as_json, how)
        return
    made = PictureOutput(output)
    pictures = PictureSet(images, background, resize)
    refuse_own_input(output, [*images, *pictures.paths])
    names = [f"{index:06d}_{path.stem}.png" for index, path in enumerate(pictures.paths)]
    if made.is_folder:
        check_names_free(output, names)
    with open_engine() as engine, stages("images") as begin:
        check_pictures(engine.spec.tokenizer)
        begun, quality = one_stage(begin, "reconstructing", len(pictures)), 0.0
        next_name = iter(names)
        with made.begun(len(pictures), pictures.size, columns=columns, stacked=2, go_on=_AGAIN):
            for part, whole in batches(pictures, engine, pad, batch):
                ids = engine.encode(whole, batch=batch, begin=begun)
                rebuilt = cropped(engine.decode(ids, batch=batch), pictures.size)
                quality += psnr(part, rebuilt) * len(part)
                for above, image in zip(part, rebuilt, strict=True):
                    made.add(next(next_name), image, above=above)
            made.finish()
    quality = round(quality / len(pictures), 2)
    print_result({"images": len(pictures), "psnr_db": quality, "output": str(output)}, as_json)


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
    refuse_own_input(output, [tokens])
    content = read_tokens(tokens)
    write_tokens(output, converted_tokens(content, bits, bit_order))
    result = {
        "images": len(content.ids),
        "from": f"{','.join(map(str, bits_of(content.vocabularies)))} {content.bit_order}",
        "to": f"{','.join(map(str, bits))} {bit_order}",
        "output": str(output),
    }
    print_result(result, as_json)


def refuse_own_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace, or come to lie among, what it is made of."""
    if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
        raise FolderError(f"{output} is what is read; choose another output", option="-o")


def batches(
    pictures: PictureSet, engine: Engine, pad: bool, batch: int | None
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Batches of images, and the same as the engine takes them: framed, if `pad`."""
    strides = engine.spec.tokenizer.strides
    size = padded_size(pictures.size, strides) if pad else pictures.size
    for part in pictures.batches(engine.compute_at_once(size, batch)):
        yield part, padded(part, strides) if pad else part


def one_stage(begin: Begin, name: str, images: int) -> Begin:
    """For calls that are parts of one stage: it begins with the first of them."""
    begun: list[Advance] = []

    def begin_once(stage: str, total: int | None = None) -> Advance:
        if not begun:
            begun.append(begin(name, images))
        return begun[0]

    return begin_once
