"""How a film is cut into the clips whose tokens a file has, and when its frames are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.timing import Timing

_FRAMES, _OVERLAP, _RATE, _TICK, _TIMES = (
    "film_frames", "film_overlap", "film_rate", "film_tick", "film_times",
)  # fmt: skip
_NAMES = (_FRAMES, _OVERLAP, _RATE, _TICK, _TIMES)
_MOST_FRAMES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FilmCut:
    """A film in clips of one length, each beginning with the last frames of the one before; behind
    the film's end its last frame is repeated.

    Attributes:
        frames: Of the film.
        length: Frames of a clip.
        overlap: Frames that a clip has in common with the one before.
        timing: When the film's frames are shown.
    """

    frames: int
    length: int
    overlap: int
    timing: Timing

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: An overlap that leaves no frame, or times of another number of frames.
        """
        if not 0 <= self.overlap < self.length:
            raise InputError(
                f"clips of {self.length} frames can overlap by 0 to {self.length - 1}, found "
                f"{self.overlap}",
                option="--overlap",
            )
        times = self.timing.times
        if not 1 <= self.frames <= _MOST_FRAMES or (
            times is not None and len(times) != self.frames + 1
        ):
            raise InputError(f"expected times of all frames of a film, found {self.frames} frames")

    @property
    def clips(self) -> int:
        """How many there are."""
        return 1 + max(0, -(-(self.frames - self.length) // (self.length - self.overlap)))

    def own(self, clip: int) -> slice:
        """The frames of a clip, by number, that no clip before has and that are the film's."""
        first = clip * (self.length - self.overlap)
        return slice(self.overlap if clip else 0, min(self.length, self.frames - first))


def arrays_from_cut(cut: FilmCut) -> dict[str, npt.NDArray[np.int64]]:
    """A cut as int64 arrays of a token file; the clips' length is in its image_size."""
    timing = cut.timing
    return {
        _FRAMES: np.array(cut.frames),
        _OVERLAP: np.array(cut.overlap),
        _RATE: np.array(timing.rate.as_integer_ratio()),
        _TICK: np.array(timing.tick.as_integer_ratio()),
        _TIMES: np.zeros(0, np.int64) if timing.times is None else timing.times,
    }


def cut_from_arrays(arrays: Mapping[str, npt.NDArray[Any]], length: int) -> FilmCut | None:
    """The cut that `arrays_from_cut` wrote; None where there is none.

    Args:
        arrays: By name; there may be others.
        length: Frames of a clip.

    Raises:
        InputError: One of them is missing, or is not what it should be.
    """
    if not any(name in arrays for name in _NAMES):
        return None
    shapes = {_FRAMES: (), _OVERLAP: (), _RATE: (2,), _TICK: (2,)}
    for name in _NAMES:
        array = arrays.get(name)
        if array is None or array.dtype != np.int64 or array.shape != shapes.get(name, array.shape):
            found = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise InputError(
                f"expected {name} as int64 {shapes.get(name, '(T + 1)')}, found {found}"
            )
    times = arrays[_TIMES]
    rate, tick = (_fraction(name, arrays[name]) for name in (_RATE, _TICK))
    timing = Timing(rate, tick, times if times.size else None)
    return FilmCut(int(arrays[_FRAMES]), length, int(arrays[_OVERLAP]), timing)


def _fraction(name: str, array: npt.NDArray[np.int64]) -> Fraction:
    numerator, denominator = array.tolist()
    if denominator < 1:
        raise InputError(f"expected {name} as a fraction, found {numerator}/{denominator}")
    return Fraction(numerator, denominator)
