"""Frames to film files, by the name's suffix, each written whole or not at all:

- .mp4: H.264 (libx264, quality 17 of 51) in BT.709 colours, as yuv420p, which everything plays; of
  odd sides, which yuv420p does not have, as yuv444p, so that the size is kept.
- .mkv: FFV1 in RGB, without loss.
- .gif, .webp, .png: animated; GIF with the 256 best colours of each frame, the others without loss.

Constant rates are kept exactly where the container can: GIF counts hundredths of a second, WebP and
Matroska thousandths, to which times of frames are rounded, never summed up. How long the last frame
is shown of a film of variable rate is FFmpeg's choice. MP4 and Matroska keep notes, as one JSON
text, in their comment. Nothing of time or place is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import FolderError, InputError, require
from m2kit.outputs import check_output, new_file
from m2kit.records import JsonObject
from m2kit.timing import Timing

Add = Callable[[npt.NDArray[np.uint8]], None]  # the next frame, (H, W, 3) uint8
_BT709, _LIMITED = 1, 1  # as FFmpeg counts colour matrices, primaries, curves and ranges
_BITEXACT = {"fflags": "+bitexact"}  # no version or time in the file
_THREADS = 4  # of an encoder: more hold more frames


@dataclass(frozen=True, slots=True)
class _Kind:
    """How films of a suffix are written.

    Attributes:
        container: FFmpeg's name.
        codec: FFmpeg's name.
        pixel_format: FFmpeg's name.
        odd_pixel_format: Of odd sides.
        options: Of the codec.
        shortest: Seconds for which a frame can be shown.
        longest_side: In pixels.
    """

    container: str
    codec: str
    pixel_format: str
    odd_pixel_format: str
    options: dict[str, str]
    shortest: Fraction
    longest_side: int


_KINDS = {
    ".mp4": _Kind("mp4", "libx264", "yuv420p", "yuv444p", {"crf": "17"}, Fraction(1, 1000), 16_384),
    ".mkv": _Kind("matroska", "ffv1", "bgr0", "bgr0", {}, Fraction(1, 1000), 16_384),
    ".gif": _Kind("gif", "gif", "pal8", "pal8", {}, Fraction(2, 100), 65_535),
    ".webp": _Kind(
        "webp", "libwebp_anim", "bgra", "bgra", {"lossless": "1"}, Fraction(1, 1000), 16_383
    ),
    ".png": _Kind("apng", "apng", "rgb24", "rgb24", {}, Fraction(1, 1000), 65_535),
}
WRITTEN_SUFFIXES = tuple(_KINDS)


def _check_film(path: Path, size: tuple[int, int], timing: Timing) -> None:
    """Refuse a film that cannot be written before any work is spent on it.

    Args:
        path: Of the file.
        size: (H, W) in pixels.
        timing: When its frames are shown.

    Raises:
        FolderError: A name that no film has, or it cannot be written.
        InputError: Frames larger or faster than the container can have.
        BackendError: PyAV is not installed.
    """
    check_output(path, *WRITTEN_SUFFIXES)
    require("av", extra="video", what="writing films")
    kind = _KINDS[path.suffix.lower()]
    if max(size) > kind.longest_side:
        raise InputError(
            f"{path.suffix} holds frames of {kind.longest_side:,} pixels along a side, found "
            f"{size[1]} x {size[0]}; choose another suffix or a smaller size"
        )
    if timing.shortest < kind.shortest:
        raise InputError(
            f"{path.suffix} shows a frame for {float(kind.shortest):g} s at least, this film one "
            f"for {float(timing.shortest):.3g} s; choose another suffix",
            option="-o",
        )


@contextmanager
def new_film(
    path: Path, size: tuple[int, int], timing: Timing, notes: JsonObject | None = None
) -> Iterator[Add]:
    """Gives what adds the next frame to a film file, which is there when the block ends without an
    error.

    Args:
        path: Of the file; one that is there is replaced.
        size: (H, W) in pixels.
        timing: When the frames are shown.
        notes: To be kept in the file, where it can.

    Raises:
        FolderError: A name that no film has, or it cannot be written.
        InputError: Frames larger or faster than the container can have.
        BackendError: PyAV is not installed.
    """
    _check_film(path, size, timing)
    av = require("av", extra="video", what="writing films")
    kind = _KINDS[path.suffix.lower()]
    tick = 1 / timing.rate if timing.times is None else timing.tick
    with new_file(path) as temporary:
        try:
            with av.open(
                str(temporary), "w", format=kind.container, container_options=_BITEXACT
            ) as container:
                if notes is not None:
                    container.metadata["comment"] = json.dumps(notes, sort_keys=True)
                stream = _stream(container, kind, size, timing.rate)
                stream.codec_context.time_base = tick
                reformatter, count = av.video.reformatter.VideoReformatter(), 0

                def add(pixels: npt.NDArray[np.uint8]) -> None:
                    nonlocal count
                    frame = _frame(av, reformatter, pixels, stream.pix_fmt)
                    frame.time_base = tick
                    frame.pts, frame.duration = _shown(timing, count)
                    container.mux(stream.encode(frame))
                    count += 1

                yield add
                container.mux(stream.encode(None))
        except av.error.FFmpegError as error:
            raise FolderError(
                f"cannot write {path}: {error.strerror}; nothing was left behind; choose another "
                "output"
            ) from error


def _shown(timing: Timing, index: int) -> tuple[int, int]:
    """When a frame is shown and for how long, in ticks."""
    if timing.times is None:
        return index, 1
    start, end = timing.times[index : index + 2]
    return int(start), int(end - start)


def _stream(container: Any, kind: _Kind, size: tuple[int, int], rate: Fraction) -> Any:
    stream = container.add_stream(kind.codec, rate=rate, options=kind.options)
    stream.height, stream.width = size
    odd = any(side % 2 for side in size)
    stream.pix_fmt = kind.odd_pixel_format if odd else kind.pixel_format
    context = stream.codec_context
    context.thread_count = _THREADS
    if stream.pix_fmt.startswith("yuv"):
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
    return stream


def _frame(av: Any, reformatter: Any, pixels: npt.NDArray[np.uint8], pixel_format: str) -> Any:
    """Pixels (H, W, 3) uint8 as a frame of PyAV."""
    if pixel_format == "pal8":
        return _paletted(av, pixels)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    yuv = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
    how = yuv if pixel_format.startswith("yuv") else {}
    return reformatter.reformat(frame, format=pixel_format, threads=1, **how)


def _paletted(av: Any, pixels: npt.NDArray[np.uint8]) -> Any:
    """With the 256 best colours of the frame itself, not dithered: noise that moves is seen."""
    picture = Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE)
    colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.asarray(picture), palette), format="pal8")
