"""What a film file is decoded with: PyAV (FFmpeg) for films, Pillow for animated GIF, WebP and PNG,
whose transparency and disposal it does as for pictures, and whose WebP FFmpeg cannot read.

The file's content decides, not its name. FFmpeg opens only the containers listed here, and from
the opened file alone: playlists, which name other files and addresses, are none of them. Frames are
turned and mirrored as the container's display matrix says. Colours follow the matrix and range that
the film tells (BT.601 where it tells none), pixels are as stored, square or not, and high dynamic
range is not mapped. Sound is left out.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from m2kit.errors import InputError, require
from m2kit.runtime.pictures import PILLOW_ERRORS, Colour, rgb_from_pil

MOST_PIXELS = 2**25  # of a frame, more than 7680 x 4320: a decoder may keep sixteen
FILM = "a film (MP4, MOV, Matroska, WebM, AVI, MPEG, Ogg or FLV, or animated GIF, WebP or PNG)"
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,ogg,asf,flv,h264,hevc,nut"
_ANIMATIONS = {b"GIF8": "GIF", b"RIFF": "WEBP", b"\x89PNG": "PNG"}
_Turn = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
_UNTOLD_MS = 100  # of a GIF's frame that tells 10 ms or less, as browsers show it
_SHORTEST_GIF_MS = 20


@dataclass(frozen=True, slots=True)
class Moment:
    """A decoded frame.

    Attributes:
        start: In ticks, when it is shown; None where the file does not tell.
        length: In ticks, for how long; 0 where the file does not tell.
        size: (H, W) in pixels, upright.
        pixels: Gives it as (H, W, 3) uint8, upright; to be called before the next one is asked for.
    """

    start: int | None
    length: int
    size: tuple[int, int]
    pixels: Callable[[], npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Source:
    """A film file, opened at its beginning.

    Attributes:
        moments: Its frames, one after the other.
        tick: Seconds.
        told: Frame rates that the file tells, the best first.
        sound: Whether it has any.
        coded_order: Whether times are those of frames as they are coded, which AVI alone has, and
            not as they are shown.
        breaks_off: Asked when all frames were seen, with the end of the last one in ticks and the
            mean seconds of a frame: whether the file tells of more.
    """

    moments: Iterator[Moment]
    tick: Fraction
    told: tuple[Fraction | None, ...]
    sound: bool
    coded_order: bool
    breaks_off: Callable[[int, Fraction], bool]


@contextmanager
def opened_source(file: BinaryIO, background: Colour) -> Iterator[Source]:
    """The source of an opened file; errors of its decoder, also later ones, are one line.

    Raises:
        InputError: No film, a damaged one, or frames of more than 2^25 pixels.
        BackendError: PyAV is not installed.
    """
    head = file.read(16)
    file.seek(0)
    kind = next((_ANIMATIONS[sign] for sign in _ANIMATIONS if head.startswith(sign)), None)
    if kind and (kind != "WEBP" or head[8:12] == b"WEBP"):
        with _animation(file, kind, background) as source:
            yield source
    else:
        with _film(file, background) as source:
            yield source


@contextmanager
def _animation(file: BinaryIO, kind: str, background: Colour) -> Iterator[Source]:
    """Of an animated picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is unusual or large
            with Image.open(file, formats=[kind]) as image:
                _check_size(image.height, image.width)
                tick = Fraction(1, 100 if kind == "GIF" else 1000)
                moments = _frames_of_pil(image, tick, background)
                first = next(moments)
                told = Fraction(1) / _seconds_of_pil(image)
                yield Source(
                    chain([first], moments), tick, (told,), False, False, lambda end, step: False
                )
    except UnidentifiedImageError as error:
        raise InputError(f"expected {FILM}, found something else") from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large("more")) from error
    except PILLOW_ERRORS as error:
        raise InputError(f"expected {FILM}, found a damaged one ({error})") from error


def _frames_of_pil(image: Any, tick: Fraction, background: Colour) -> Iterator[Moment]:
    hidden = 1 if image.info.get("default_image") else 0  # shown where animations are not
    clock = Fraction(0)
    for index in range(hidden, getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        start, clock = clock, clock + _seconds_of_pil(image)
        begin, end = round(start / tick), round(clock / tick)
        size = (image.height, image.width)
        yield Moment(
            begin, end - begin, size, lambda: np.asarray(rgb_from_pil(image.copy(), background))
        )


def _seconds_of_pil(image: Any) -> Fraction:
    """For how long the frame is shown. A PNG tells a fraction, of 16 bits each, which is got back
    from Pillow's float."""
    told = float(image.info.get("duration") or 0)
    if not told or (image.format == "GIF" and told < _SHORTEST_GIF_MS):
        told = _UNTOLD_MS
    return Fraction(told / 1000).limit_denominator(2**16 - 1)


@contextmanager
def _film(file: BinaryIO, background: Colour) -> Iterator[Source]:
    """Of what FFmpeg reads."""
    av = require("av", extra="video", what="reading films")
    limits = {"max_pixels": str(MOST_PIXELS)}
    # texts that are no UTF-8 are nobody's business here; PyAV 19 reads them and has no such option
    old = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        with av.open(
            file,
            "r",
            options=limits,
            container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
            **old,
        ) as container:
            if not container.streams.video:
                raise InputError("expected a film, found a file without pictures in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError("expected a film, found one in a code that FFmpeg cannot decode")
            _check_size(stream.codec_context.height, stream.codec_context.width)
            stream.codec_context.options = limits
            told = (stream.guessed_rate, stream.average_rate)
            yield Source(
                _frames_of_av(av, container, stream, background),
                stream.time_base,
                told,
                bool(container.streams.audio),
                container.format.name == "avi",
                lambda end, step: _lacking(container, stream, file, end, step),
            )
    except (av.error.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "no memory for it"
        raise InputError(
            f"expected {FILM}, found something else or a damaged one ({reason})"
        ) from error


def _frames_of_av(av: Any, container: Any, stream: Any, background: Colour) -> Iterator[Moment]:
    reformatter = av.video.reformatter.VideoReformatter()
    for index, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise InputError(f"expected {FILM}, found one whose frame {index} is damaged")
        _check_size(frame.height, frame.width)
        turned, upright = _upright(av, frame)
        yield Moment(
            frame.pts,
            frame.duration or 0,
            (frame.width, frame.height) if turned else (frame.height, frame.width),
            partial(_pixels, frame, reformatter, upright, background),
        )


def _pixels(
    frame: Any, reformatter: Any, upright: _Turn, background: Colour
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 of a frame of PyAV."""
    clear = any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if clear else "rgb24"
    pixels = reformatter.reformat(frame, format=kind, threads=1).to_ndarray()
    return (
        upright(np.asarray(rgb_from_pil(Image.fromarray(pixels), background)))
        if clear
        else upright(pixels)
    )


def _upright(av: Any, frame: Any) -> tuple[bool, _Turn]:
    """Whether its display matrix turns a frame on its side, and what lays pixels (H, W, 3) so.

    The matrix maps a pixel (x, y) to (a x + c y, b x + d y), in 16.16 fixed point.
    """
    found = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if found is None:
        return False, lambda pixels: pixels
    matrix = np.frombuffer(bytes(found), np.int32)
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if (a or d) and (b or c):
        raise InputError("expected a film that is upright or turned by 90 degrees, found a slant")
    if turned := not a:
        a, d = c, b  # of the pixels with x and y exchanged
    down, across = (-1 if d < 0 else 1), (-1 if a < 0 else 1)

    def upright(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pixels = pixels.transpose(1, 0, 2) if turned else pixels
        return np.ascontiguousarray(pixels[::down, ::across])

    return turned, upright


def _lacking(container: Any, stream: Any, file: BinaryIO, end: int, step: Fraction) -> bool:
    """Whether a file breaks off: its index points beyond it, or it tells of a later end."""
    last = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if container.format.name.startswith("mov") and last > os.fstat(file.fileno()).st_size:
        return True
    told = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
    if not told:
        return False
    hours, minutes, seconds = told.groups()
    told_end = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    return bool(told_end - end * stream.time_base > step * 3 / 2)


def _check_size(height: int, width: int) -> None:
    if not 0 < height * width <= MOST_PIXELS:  # FFmpeg tells none of those over its max_pixels
        raise InputError(_too_large(f"{width} x {height}" if height * width else "more, or none"))


def _too_large(found: str) -> str:
    return f"expected frames of {MOST_PIXELS:,} pixels at most, found {found}; make them smaller"
