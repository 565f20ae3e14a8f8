"""generate, encode, decode, reconstruct and convert-tokens."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

import m2kit
from m2kit.classes import class_ids
from m2kit.cli.options import (
    NUMBERS,
    OpenEngine,
    batch_option,
    engine_options,
    json_option,
    numbers,
    output_option,
    sampling_options,
)
from m2kit.cli.output import print_result, progress_bar
from m2kit.config import BIT_ORDERS
from m2kit.errors import InputError
from m2kit.folders import check_output
from m2kit.images import cropped, padded, psnr, read_images, write_grid
from m2kit.memory import peak_bytes
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

_ROWS_WITHOUT_CLASS = 10
_BATCH = 16  # images at once where the engine does not say
Array = npt.NDArray[Any]


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
@batch_option
@output_option(
    "samples.png",
    "Grid PNG, a row of n images per class; or a folder (a name without suffix), which gets each "
    "image as soon as its batch is finished.",
)
@click.option("--tokens", type=click.Path(path_type=Path), help="Also write the ids, as .npz.")
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
    in_folder = not output.suffix
    if in_folder:
        check_output(output / "image.png", ".png")
    else:
        check_output(output, ".png")
    if tokens:
        check_output(tokens, ".npz")
    with open_engine() as engine:
        known = engine.transformer.classes
        chosen = class_ids(classes, known) or list(range(min(_ROWS_WITHOUT_CLASS, known)))
        sampling = m2kit.Sampling(**options)
        images, ids = [], []
        if in_folder:
            output.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        for drawn in _draw(engine, chosen, count, sampling, first_image, batch):
            if in_folder:
                for number, class_id, _, image in zip(*drawn, strict=True):
                    write_grid(output / f"{number:06d}_{class_id}.png", image[None], columns=1)
            else:
                images.append(drawn.images)
            if tokens:
                ids.append(drawn.ids)
        seconds = time.perf_counter() - began
        active = engine.backend.active()
        if images:
            write_grid(output, np.concatenate(images), columns=count)
        if tokens:
            write_tokens(tokens, token_file_from_ids(np.concatenate(ids), engine.spec))
    total = len(chosen) * count
    result = {
        "images": total,
        "classes": chosen,
        "seed": options["seed"],
        "images_per_second": round(total / seconds, 4),
        "output": str(output),
        "tokens": str(tokens) if tokens else None,
    }
    details = {"active": active, "peak_memory_bytes": peak_bytes()}
    print_result(result, as_json, result | details)


_pad_option = click.option(
    "--pad",
    is_flag=True,
    help="Frame images in mid-grey up to a size the model takes; decoding crops them back.",
)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@engine_options
@_pad_option
@batch_option
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
        ids = _encode(engine, pixels, pad, batch)
        write_tokens(output, token_file_from_ids(ids, engine.spec, pixels.shape[2:]))
    print_result({"images": len(ids), "grid": list(ids.shape[1:3]), "output": str(output)}, as_json)


@click.command()
@click.argument("tokens", type=click.Path(path_type=Path))
@engine_options
@batch_option
@click.option(
    "--columns", type=click.IntRange(min=1), default=8, show_default=True, help="Images per row."
)
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
        images = _in_batches("decoding", engine.decode, content.ids, _at_once(engine, batch))
        write_grid(output, cropped(images, content.image_size), columns=columns)
    print_result({"images": len(images), "output": str(output)}, as_json)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@engine_options
@_pad_option
@batch_option
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
        ids = _encode(engine, pixels, pad, batch)
        decoded = _in_batches("decoding", engine.decode, ids, _at_once(engine, batch))
        rebuilt = cropped(decoded, pixels.shape[2:])
        write_grid(output, np.concatenate([pixels, rebuilt]), columns=len(pixels))
    result = {
        "images": len(pixels),
        "psnr_db": round(psnr(pixels, rebuilt), 2),
        "output": str(output),
    }
    print_result(result, as_json)


@click.command("convert-tokens")
@click.argument("tokens", type=click.Path(path_type=Path))
@click.option(
    "--bits",
    required=True,
    callback=numbers(int),
    metavar=NUMBERS,
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
def convert_tokens(tokens: Path, bits: Any, bit_order: str, output: Path, as_json: bool) -> None:
    """Write a token file in another split and bit order; the codes stay what they are."""
    check_output(output, ".npz")
    content = read_tokens(tokens)
    split = bits if isinstance(bits, tuple) else (bits,)
    write_tokens(output, converted_tokens(content, split, bit_order))
    result = {
        "images": len(content.ids),
        "from": f"{','.join(map(str, content.bits))} {content.bit_order}",
        "to": f"{','.join(map(str, split))} {bit_order}",
        "output": str(output),
    }
    print_result(result, as_json)


def _encode(engine: Any, pixels: Array, pad: bool, batch: int | None) -> Array:
    whole = padded(pixels, engine.spec.tokenizer.downsampling) if pad else pixels
    return _in_batches("encoding", engine.encode, whole, _at_once(engine, batch))


def _at_once(engine: Any, batch: int | None) -> int:
    """Images that encoder or decoder take in one call."""
    return batch or engine.backend.largest_batch or _BATCH


def _batches(array: Array, batch: int) -> Iterator[Array]:
    for start in range(0, len(array), batch):
        yield array[start : start + batch]


def _in_batches(label: str, function: Callable[[Array], Array], array: Array, batch: int) -> Array:
    """The function's results on batches of the array, under a progress bar."""
    first = function(array[:batch])  # refuses bad input before a bar is drawn
    parts = [first]
    with progress_bar(label, len(array), "images") as advance:
        advance(len(first))
        for part in _batches(array[batch:], batch):
            parts.append(function(part))
            advance(len(part))
    return np.concatenate(parts)


class _Batch(NamedTuple):
    numbers: Array
    classes: Array
    ids: Array
    images: Array


def _draw(
    engine: Any, classes: list[int], count: int, sampling: Any, first: int, batch: int | None
) -> Iterator[_Batch]:
    """Images of each class, batch by batch, under a progress bar of positions."""
    total, at_once = len(classes) * count, batch or engine.largest_draw(sampling) or _BATCH
    if first + total > 2**64:
        raise InputError(f"--first-image {first} is too large: image numbers end at 2^64-1")
    decoded_at_once = min(filter(None, (batch, engine.backend.largest_batch)), default=_BATCH)

    def jobs() -> Iterator[tuple[list[int], Array, Iterator[Any]]]:
        for start in range(0, total, at_once):
            size = min(at_once, total - start)
            part = [classes[(start + i) // count] for i in range(size)]
            numbers = np.arange(size, dtype=np.uint64) + np.uint64(first + start)
            yield part, numbers, engine.generate(part, sampling, image_numbers=numbers)

    waiting = jobs()
    opened = next(waiting)  # checks classes and options before a bar is drawn
    with progress_bar("drawing", total * engine.transformer.positions, "tokens") as advance:
        for part, numbers, stream in itertools.chain([opened], waiting):
            for drawn in stream:
                advance(len(drawn.tokens))
            pieces = [engine.decode(piece) for piece in _batches(drawn.tokens, decoded_at_once)]
            yield _Batch(numbers, np.array(part), drawn.tokens, np.concatenate(pieces))
