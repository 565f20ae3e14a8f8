"""What encode, decode and reconstruct do with films."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from m2kit import __version__
from m2kit.cli.options import OpenEngine, given
from m2kit.cli.output import note, print_result, stages
from m2kit.errors import FolderError, InputError
from m2kit.outputs import check_output, check_output_folder
from m2kit.runtime.film_saving import WRITTEN_SUFFIXES, new_film
from m2kit.runtime.films import FILM_SUFFIXES, Film, film_paths
from m2kit.runtime.images import images_from_pixels, psnr
from m2kit.runtime.picture_folder import check_names_free
from m2kit.runtime.pictures import Colour
from m2kit.runtime.saving import PICTURE_SUFFIXES
from m2kit.token_file import TokenFile, write_tokens

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine

_PICTURES, _FILM_ALONE = {".gif", ".webp"}, set(WRITTEN_SUFFIXES) - set(PICTURE_SUFFIXES)
overlap_option = click.option(
    "--overlap",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Of films: each clip begins with the last N frames of the one before.",
)


@dataclass(frozen=True, slots=True)
class FilmOptions:
    """How films are read and cut.

    Attributes:
        overlap: Frames that a clip has in common with the one before.
        pad: Whether frames are framed up to a size that the model takes.
        background: What transparent pixels are laid on.
        resize: Side in pixels that frames are scaled to; None leaves them.
    """

    overlap: int
    pad: bool
    background: Colour
    resize: int | None


def are_films(images: Sequence[Path], output: Path) -> bool:
    """Whether names say that films are meant: one of them is a film's and no picture's, a folder
    holds such, or the output is such."""
    sure = tuple(suffix for suffix in FILM_SUFFIXES if suffix not in _PICTURES)
    names = [
        inner.name
        for path in images
        for inner in (path.iterdir() if path.is_dir() else [path])
        if not inner.name.startswith(".")
    ]
    return names_a_film(output) or any(name.lower().endswith(sure) for name in names)


def are_animations(images: Sequence[Path]) -> bool:
    """Whether all are pictures of a kind that may move, which are films to a video tokenizer."""
    return all(path.suffix.lower() in _PICTURES for path in images)


def names_a_film(output: Path) -> bool:
    """Whether an output's name is a film's and no picture's."""
    return output.suffix.lower() in _FILM_ALONE


def encode_films(
    open_engine: OpenEngine,
    films: Sequence[Path],
    output: Path,
    as_json: bool,
    how: FilmOptions,
) -> None:
    """Encode films, each to a token file, and print what was encoded."""
    from m2kit.runtime.film_coding import encode_film

    _refuse_batch()
    paths = film_paths(films)
    names = {path: output / f"{path.name}.npz" for path in paths}
    if output.suffix:
        check_output(output, ".npz")
        if len(paths) > 1:
            raise FolderError(
                f"{output}: expected a folder, a name without suffix, for the tokens of "
                f"{len(paths)} films, a file each",
                option="-o",
            )
        names = {paths[0]: output}
    else:
        check_output_folder(output)
        check_names_free(output, [path.name for path in names.values()])
    frames = clips = 0
    with open_engine() as engine, stages("frames") as begin:
        for path, name in names.items():
            film = _opened(engine, path, how)
            tokens = encode_film(engine, film, overlap=how.overlap, pad=how.pad, begin=begin)
            write_tokens(name, tokens)
            frames, clips = frames + len(film), clips + len(tokens.ids)
    print_result(
        {"films": len(paths), "frames": frames, "clips": clips, "output": str(output)}, as_json
    )


def decode_film(engine: Engine, tokens: TokenFile, output: Path, as_json: bool, begin: Any) -> None:
    """Decode a film's tokens to a film and print what was decoded."""
    from m2kit.runtime.film_coding import decoded_frames

    _refuse_batch()
    film = tokens.film
    if film is None:
        raise InputError(
            f"expected the tokens of a film for {output}, found others; name a picture", option="-o"
        )
    check_output(output, *WRITTEN_SUFFIXES)
    height, width = tokens.image_size[1:]
    with new_film(output, (height, width), film.timing, _notes(engine)) as add:
        for pixels in decoded_frames(engine, tokens, begin):
            add(pixels)
    rate = str(film.timing.rate)
    print_result({"frames": film.frames, "frame_rate": rate, "output": str(output)}, as_json)


def reconstruct_film(
    open_engine: OpenEngine,
    films: Sequence[Path],
    output: Path,
    as_json: bool,
    how: FilmOptions,
) -> None:
    """Write a film beside its reconstruction and print the PSNR."""
    from m2kit.runtime.film_coding import reconstructed_frames

    _refuse_batch()
    check_output(output, *WRITTEN_SUFFIXES)
    paths = film_paths(films)
    if len(paths) > 1:
        raise InputError(f"expected one film to reconstruct, found {len(paths)}; give one")
    with open_engine() as engine, stages("frames") as begin:
        film = _opened(engine, paths[0], how)
        size, total = (film.size[0], 2 * film.size[1]), 0.0
        with new_film(output, size, film.timing, _notes(engine)) as add:
            for pixels, rebuilt in reconstructed_frames(
                engine, film, overlap=how.overlap, pad=how.pad, begin=begin
            ):
                total += psnr(*(images_from_pixels(each[None]) for each in (pixels, rebuilt)))
                add(np.concatenate([pixels, rebuilt], axis=1))
    result = {
        "frames": len(film),
        "frame_rate": str(film.timing.rate),
        "psnr_db": round(total / len(film), 2),
        "output": str(output),
    }
    print_result(result, as_json)


def _refuse_batch() -> None:
    if given("batch"):
        raise click.UsageError("leave out --batch: films are coded clip by clip.")


def _opened(engine: Engine, path: Path, how: FilmOptions) -> Film:
    """A film, looked through, with what is to be said of it."""
    from m2kit.runtime.film_coding import clip_length

    length = clip_length(engine)
    film = Film(path, how.background, how.resize)
    if film.sound:
        note(f"{path}: its sound is left out")
    if len(film) > length:
        overlapping = f", overlapping by {how.overlap}" if how.overlap else ""
        note(
            f"{path}: coded in clips of {length} frames{overlapping}; normalisation pools over a "
            "clip, so that borders may show"
        )
    return film


def _notes(engine: Engine) -> dict[str, Any]:
    name = engine.info.name if engine.info else ""
    return {"software": f"m2kit {__version__}", "engine": name}
