"""Film files in: frames as 8-bit RGB one after the other, and clips of them. Memory does not depend
on how long a film is.

A film is looked through once before any work is spent on it: how many frames it has, when each is
shown, and whether it is whole are known then, and not only told by its container.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError
from m2kit.film_cut import FilmCut
from m2kit.inputs import open_input
from m2kit.runtime.film_sources import Source, opened_source
from m2kit.runtime.picture_set import files_of, middle_square
from m2kit.runtime.pictures import WHITE, Colour
from m2kit.timing import Timing, timing_from_times

FILM_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".ogv",
    ".wmv", ".flv", ".gif", ".webp", ".apng",
)  # fmt: skip
MOST_CLIP_PIXELS = 2**28  # of a clip: 800 MB
_CHANGED = "the file changed while it was read; give the command again"


@dataclass(frozen=True, slots=True)
class Clip:
    """So many frames of a film as a model takes at once.

    Attributes:
        pixels: (T, H, W, 3) uint8. Behind a film's end its last frame is repeated.
        before: Frames at the beginning that the clip before has, too.
        real: Frames that are the film's.
    """

    pixels: npt.NDArray[np.uint8]
    before: int
    real: int

    @property
    def own(self) -> slice:
        """The frames of the film that no clip before has."""
        return slice(self.before, self.real)


class Film:
    """A film file.

    Attributes:
        path: Of the file.
        size: (H, W) of its frames in pixels, upright and scaled.
        timing: When they are shown.
        sound: Whether it has any, which is left out.
    """

    def __init__(self, path: Path, background: Colour = WHITE, side: int | None = None) -> None:
        """Look a film through.

        Args:
            path: Of the file; its content decides what it is, not its name.
            background: What transparent pixels are laid on.
            side: The shorter side is scaled to so many pixels, the middle square taken. None leaves
                frames as they are.

        Raises:
            InputError: No film, none with frames, a damaged one, one that breaks off, frames of
                more than 2^25 pixels or of several sizes, or no regular file.
            BackendError: PyAV is not installed.
        """
        self.path, self._background, self._side = path, background, side
        with self._opened() as source:
            upright, times = _looked_through(source)
            self.timing: Timing = timing_from_times(times, source.tick, source.told)
            self.sound: bool = source.sound
        self._upright, self._frames = upright, len(times) - 1
        self.size: tuple[int, int] = upright if side is None else (side, side)

    def __len__(self) -> int:
        """Frames."""
        return self._frames

    def frames(self, first: int = 0) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames from one on, (H, W, 3) uint8.

        Raises:
            InputError: The file is no longer what it was.
        """
        count = 0
        with self._opened() as source:
            for moment in source.moments:
                if moment.size != self._upright or count == self._frames:
                    raise InputError(_CHANGED)
                count += 1
                if count > first:
                    yield self._scaled(moment.pixels())
            if count < self._frames:
                raise InputError(_CHANGED)

    def clips(self, length: int, overlap: int = 0) -> Iterator[Clip]:
        """The film in clips of `length` frames, each beginning with the last `overlap` ones of that
        before.

        Raises:
            InputError: An overlap that leaves no frame, too many pixels, or as for `frames`.
        """
        FilmCut(self._frames, length, overlap, self.timing)
        height, width = self.size
        if length * height * width > MOST_CLIP_PIXELS:
            raise InputError(
                f"{self.path}: a clip of {length} frames of {width} x {height} pixels is over "
                f"{MOST_CLIP_PIXELS:,}; scale the film to a smaller size",
                option="--resize",
            )
        held: list[npt.NDArray[np.uint8]] = []
        before = 0
        for number, pixels in enumerate(self.frames(), 1):
            held.append(pixels)
            if len(held) == length or number == self._frames:
                real = len(held)
                held += [pixels] * (length - real)
                yield Clip(np.stack(held), before, real)
                held, before = held[length - overlap :], overlap

    @contextmanager
    def _opened(self) -> Iterator[Source]:
        """At its beginning; errors begin with the path."""
        try:
            with (
                open_input(self.path, "film") as file,
                opened_source(file, self._background) as source,
            ):
                yield source
        except InputError as error:
            if str(error).startswith(f"{self.path}: "):
                raise
            raise InputError(f"{self.path}: {error}", option=error.option) from error

    def _scaled(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self._side is None:
            return pixels
        return np.asarray(middle_square(Image.fromarray(pixels), self._side, self.path))


def film_paths(given: Sequence[Path]) -> list[Path]:
    """Film files: those given, and of folders given every file that has a film's suffix, sorted by
    name; what is hidden and folders in folders are not taken.

    Raises:
        InputError: A folder without films, or a path that is no regular file.
    """
    return [path for each in given for path in files_of(each, FILM_SUFFIXES, "film")]


def _looked_through(source: Source) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    """(H, W) of the frames, and (T + 1) int64 times in ticks, from 0."""
    starts, size, end = array("q"), (0, 0), 0
    for index, moment in enumerate(source.moments):
        size = size if index else moment.size
        if moment.size != size:
            (height, width), (own_height, own_width) = size, moment.size
            raise InputError(
                f"expected frames of one size, found {width} x {height}, and {own_width} x "
                f"{own_height} in frame {index}"
            )
        start = moment.start
        if start is None:  # of a bare stream, without a container
            rate = next((rate for rate in source.told if rate), Fraction(25))
            start = round(index / (rate * source.tick))
        starts.append(start)
        end = max(end, start + moment.length)
    if not starts:
        raise InputError("expected a film, found one without a frame")
    times = np.frombuffer(starts, np.int64)
    if source.coded_order:
        times = np.sort(times)
    if (np.diff(times) < 1).any():
        late = int(np.argmax(np.diff(times) < 1)) + 1
        raise InputError(f"expected frames in order of time, frame {late} is not")
    first = int(times[0])
    times = times - first
    end -= first
    if end <= times[-1]:  # the last frame's end is not told
        end = int(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1))
    if source.breaks_off(end + first, end * source.tick / len(times)):
        raise InputError(
            f"expected a whole film, found one that breaks off after {len(times)} "
            "frames; copy it again"
        )
    return size, np.append(times, end)
