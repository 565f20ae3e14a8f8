"""Films through a video tokenizer, clip by clip, in memory that does not depend on their length but
for the tokens themselves.

A tokenizer is causal but for its normalisation, which pools over a clip: borders of clips may show.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.families.video import VideoTokenizerSpec
from m2kit.film_cut import FilmCut
from m2kit.progress import Begin, silent
from m2kit.runtime.engine import Engine
from m2kit.runtime.films import Clip, Film
from m2kit.runtime.images import cropped, images_from_pixels, padded, uint8_from_images
from m2kit.token_file import TokenFile, token_file_from_ids


def encode_film(
    engine: Engine, film: Film, *, overlap: int = 0, pad: bool = False, begin: Begin = silent
) -> TokenFile:
    """The tokens of a film.

    Args:
        engine: Of a video tokenizer.
        film: The film.
        overlap: Frames that a clip has in common with the one before.
        pad: Whether frames are framed in mid-grey up to a size that the model takes.
        begin: Called with the number of frames.

    Raises:
        InputError: A model that takes no clips, a size that it does not take, an overlap that
            leaves no frame, or a film that changed.
    """
    length = clip_length(engine)
    cut = FilmCut(len(film), length, overlap, film.timing)
    advance, ids = begin(f"encoding {film.path.name}", len(film)), []
    for clip in film.clips(length, overlap):
        ids.append(engine.encode(_images(engine, clip, pad)))
        advance(clip.real - clip.before)
    return token_file_from_ids(np.concatenate(ids), engine.spec, (length, *film.size), cut)


def decoded_frames(
    engine: Engine, tokens: TokenFile, begin: Begin = silent
) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames (H, W, 3) uint8 of a film's tokens, each when its clip is decoded.

    Raises:
        InputError: They are of no film.
    """
    film = tokens.film
    if film is None:
        raise InputError("expected the tokens of a film, found those of something else")
    advance = begin("decoding", film.frames)
    for index, ids in enumerate(tokens.ids):
        own = _pixels(engine, ids[None], tokens.image_size)[film.own(index)]
        yield from own
        advance(len(own))


def reconstructed_frames(
    engine: Engine, film: Film, *, overlap: int = 0, pad: bool = False, begin: Begin = silent
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Each frame of a film and its reconstruction, (H, W, 3) uint8; arguments and errors as for
    `encode_film`."""
    length = clip_length(engine)
    advance = begin(f"reconstructing {film.path.name}", len(film))
    for clip in film.clips(length, overlap):
        ids = engine.encode(_images(engine, clip, pad))
        rebuilt = _pixels(engine, ids, (length, *film.size))
        yield from zip(clip.pixels[clip.own], rebuilt[clip.own], strict=True)
        advance(clip.real - clip.before)


def clip_length(engine: Engine) -> int:
    """Frames of the clips in which a model's films are coded.

    Raises:
        InputError: The model takes pictures.
    """
    tokenizer = engine.spec.tokenizer
    if not isinstance(tokenizer, VideoTokenizerSpec):
        raise InputError(
            f"this model takes {tokenizer.picture}, no film; use an engine of a video tokenizer"
        )
    return tokenizer.frames


def _images(engine: Engine, clip: Clip, pad: bool) -> npt.NDArray[np.float32]:
    images = images_from_pixels(clip.pixels[None])
    return padded(images, (1, *engine.spec.tokenizer.strides[1:])) if pad else images


def _pixels(
    engine: Engine, ids: npt.NDArray[np.int64], size: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3) uint8 of one clip's ids (1, t, h, w, K)."""
    frames: npt.NDArray[np.uint8] = uint8_from_images(cropped(engine.decode(ids), size))[0]
    return frames
