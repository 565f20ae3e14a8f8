"""encode, decode, reconstruct and convert-tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2kit.cli.options import (
    COUNT,
    INTEGERS,
    PATH,
    Colour,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    output_option,
    together,
)
from m2kit.cli.output import print_result, stages
from m2kit.cli.picture_output import GRID_OR_FOLDER, PictureOutput
from m2kit.families.sign_bits import BIT_ORDERS, bits_of
from m2kit.outputs import check_output
from m2kit.runtime.images import cropped, padded, psnr, read_images
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine

_AGAIN = "Give the same command again to make them all."
_columns_option = click.option(
    "--columns", type=COUNT, default=8, help="Images in a row of a grid."
)
_images_options = together(
    click.argument("images", nargs=-1, required=True, type=PATH),
    engine_options,
    click.option(
        "--pad",
        is_flag=True,
        help="Frame images in mid-grey up to a size the model takes; decoding crops them back.",
    ),
    click.option(
        "--background",
        type=Colour(),
        default="white",
        help="What transparent pixels are laid on: a name, or #RRGGBB.",
    ),
    batch_option,
)


@click.command()
@_images_options
@output_option("tokens.npz", "Token file.")
@json_option
def encode(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    background: tuple[int, int, int],
    batch: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Turn IMAGES (of one size) into a token file."""
    check_output(output, ".npz")
    with open_engine() as engine:
        pixels = read_images(images, background)
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
    """Turn a token file into images."""
    pictures = PictureOutput(output)
    with open_engine() as engine, stages("images") as begin:
        content = read_tokens_of(tokens, engine.spec)
        count, size = len(content.ids), content.image_size
        at_once = _at_once(engine, engine.spec.size_of_grid(content.ids.shape[1:-1]), batch)
        with pictures.begun(count, size, columns=columns, go_on=_AGAIN):
            advance = begin("decoding", count)
            for start in range(0, count, at_once):
                decoded = engine.decode(content.ids[start : start + at_once], batch=batch)
                for index, image in enumerate(cropped(decoded, size), start):
                    pictures.add(f"{index:06d}", image)
                advance(len(decoded))
            pictures.finish()
    print_result({"images": count, "output": str(output)}, as_json)


@click.command()
@_images_options
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
    batch: int | None,
    columns: int,
    output: Path,
    as_json: bool,
) -> None:
    """Encode and decode IMAGES (of one size), and report the PSNR.

    A folder gets the reconstructions alone.
    """
    pictures = PictureOutput(output)
    with open_engine() as engine, stages("images") as begin:
        pixels = read_images(images, background)
        whole = padded(pixels, engine.spec.tokenizer.strides) if pad else pixels
        size = pixels.shape[2:]
        with pictures.begun(len(pixels), size, columns=columns, stacked=2, go_on=_AGAIN):
            ids = engine.encode(whole, batch=batch, begin=begin)
            rebuilt = cropped(engine.decode(ids, batch=batch, begin=begin), size)
            for index, path in enumerate(images):
                pictures.add(f"{index:06d}_{path.stem}", rebuilt[index], above=pixels[index])
            pictures.finish()
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


def _at_once(engine: Engine, size: tuple[int, ...], batch: int | None) -> int:
    """Images of a size that are computed at once."""
    good = engine.backend.images_at_once(size)
    return min(good, batch or good)
