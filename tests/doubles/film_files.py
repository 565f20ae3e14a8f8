"""Film files for tests, made by PyAV itself, so that nothing binary is kept: sound ones, as m2kit
would never write them, and hostile ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

LOSSLESS = {"codec": "libx264rgb", "pixel_format": "rgb24", "codec_options": {"qp": "0"}}


def moving(frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of which no two are equal: a red square moves over a grey slope."""
    rows, columns = np.mgrid[:height, :width]
    for index in range(frames):
        grey = (rows * 90 // height + columns * 90 // width + 40).astype(np.uint8)
        frame = np.repeat(grey[..., None], 3, axis=2)
        left, top = index % max(1, width - 8), index // 16 % max(1, height - 8)
        frame[top : top + 8, left : left + 8] = (220, index % 64, 30)
        yield frame


def write_film(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: Fraction | int = 25,
    times: Iterable[int] | None = None,
    tick: Fraction | None = None,
    container: str | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    matrix: Any = None,
    sound: bool = False,
) -> Path:
    """A film of frames, at a rate or at times in ticks."""
    with av.open(str(path), "w", format=container, container_options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=codec_options or {})
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        if tick is not None:
            stream.codec_context.time_base = tick
        if matrix is not None:
            stream.set_display_matrix(matrix)
        audio = file.add_stream("aac", rate=48000) if sound else None
        clock = iter(times) if times is not None else None
        for index, pixels in enumerate(frames):
            if not index:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if clock is not None:
                frame.pts, frame.time_base = next(clock), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 48000
            file.mux(audio.encode(silence))
            file.mux(audio.encode(None))
    return path


def cut(path: Path, to: Path, share: float) -> Path:
    """The first part of a file."""
    data = path.read_bytes()
    to.write_bytes(data[: int(len(data) * share)])
    return to
