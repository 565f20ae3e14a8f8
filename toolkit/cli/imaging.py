"""encode, decode, reconstruct and convert-tokens."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

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
from m2kit.families.sign_bits import BIT_ORDERS, bits_of
from m2kit.outputs import check_output
from m2kit.runtime.images import (
    check_grid,
    cropped,
    padded,
    psnr,
    read_images,
    write_grid,
)
from m2kit.runtime.pictures import WRITTEN
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

_columns_option = click.option(
    "--columns", type=COUNT, default=8, help="Images per row of the grid."
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
@output_option("decoded.png", "Grid, as .png, .jpg or .webp.")
@_columns_option
@json_option
def decode(
    open_engine: OpenEngine,
    tokens: Path,
    batch: int | None,
    output: Path,
    columns: int,
    as_json: bool,
) -> None:
    """Turn a token file into images."""
    check_output(output, *WRITTEN)
    with open_engine() as engine:
        content = read_tokens_of(tokens, engine.spec)
        check_grid(output, len(content.ids), content.image_size, columns=columns)
        with stages("images") as begin:
            images = engine.decode(content.ids, batch=batch, begin=begin)
        write_grid(output, cropped(images, content.image_size), columns=columns)
    print_result({"images": len(images), "output": str(output)}, as_json)


@click.command()
@_images_options
@output_option("reconstruction.png", "Grid, as .png, .jpg or .webp.")
@_columns_option
@json_option
def reconstruct(
    open_engine: OpenEngine,
    images: tuple[Path, ...],
    pad: bool,
    background: tuple[int, int, int],
    batch: int | None,
    output: Path,
    columns: int,
    as_json: bool,
) -> None:
    """Encode and decode IMAGES (of one size), and report the PSNR.

    The grid has each row of images with their reconstructions below.
    """
    check_output(output, *WRITTEN)
    with open_engine() as engine:
        pixels = read_images(images, background)
        columns = min(columns, len(pixels))
        in_grid = 2 * columns * -(-len(pixels) // columns)
        check_grid(output, in_grid, pixels.shape[2:], columns=columns)
        whole = padded(pixels, engine.spec.tokenizer.strides) if pad else pixels
        with stages("images") as begin:
            ids = engine.encode(whole, batch=batch, begin=begin)
            decoded = engine.decode(ids, batch=batch, begin=begin)
        rebuilt = cropped(decoded, pixels.shape[2:])
        write_grid(output, _in_pairs_of_rows(pixels, rebuilt, columns), columns=columns)
    quality = round(psnr(pixels, rebuilt), 2)
    print_result({"images": len(pixels), "psnr_db": quality, "output": str(output)}, as_json)


def _in_pairs_of_rows(
    images: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32], columns: int
) -> npt.NDArray[np.float32]:
    """A row of images, a row of what became of them, and so on; the last rows end in white."""
    rows = []
    for start in range(0, len(images), columns):
        for part in (images[start : start + columns], rebuilt[start : start + columns]):
            missing = columns - len(part)
            rows += [part, np.ones((missing, *part.shape[1:]), np.float32)]
    return np.concatenate(rows)


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
