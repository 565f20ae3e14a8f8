"""When the frames of a film are shown: at a constant rate, kept as the exact fraction it is, or at
times of their own.

Containers round times to their ticks (thousandths of a second in Matroska and WebP, hundredths in
GIF): what lies within a tick of a constant rate is one, and its rate is not what the ticks say but
what the file tells, or else the simplest that fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError

MOST_RATE = 1000  # frames per second
_MOST_NUMBER = 2**31 - 1  # of a fraction's numerator and denominator, as containers have them
_SIMPLE = 20  # denominators of rates that are simple
_TELEVISION = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))


@dataclass(frozen=True, slots=True)
class Timing:
    """When T frames are shown.

    Attributes:
        rate: Frames per second; their mean where `times` are told.
        tick: Seconds, what `times` count.
        times: (T + 1) int64, rising from 0: when each frame begins, and when the last one ends.
            None where the rate is constant.
    """

    rate: Fraction
    tick: Fraction = Fraction(1)
    times: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Refuse what no film has.

        Raises:
            InputError: A rate or tick out of range, or times that do not rise from 0.
        """
        if not _sane(self.rate) or self.rate > MOST_RATE:
            raise InputError(
                f"expected a frame rate over 0, {MOST_RATE} a second at most, found {self.rate}"
            )
        if not _sane(self.tick):
            raise InputError(f"expected a tick over 0 seconds, found {self.tick}")
        times = self.times
        if times is not None and (
            times.ndim != 1
            or len(times) < 2
            or times[0]
            or times.min()
            or (np.diff(times) < 1).any()
        ):
            raise InputError("expected times of frames that rise from 0, found others")

    @property
    def shortest(self) -> Fraction:
        """Seconds for which the frame that goes fastest is shown."""
        if self.times is None:
            return 1 / self.rate
        return int(np.diff(self.times).min()) * self.tick


def timing_from_times(
    times: npt.NDArray[np.int64], tick: Fraction, told: Iterable[Fraction | None] = ()
) -> Timing:
    """The timing of frames whose times were read from a file.

    Args:
        times: (T + 1) int64, as in `Timing`.
        tick: Seconds, to which they are rounded.
        told: Rates that the file tells, the best first.

    Raises:
        InputError: As `Timing` does.
    """
    steps = np.diff(times)
    equal = [1 / (int(steps[0]) * tick)] if (steps == steps[0]).all() else []
    mean = (len(steps) / (int(times[-1]) * tick)).limit_denominator(10**6)
    guessed: list[Fraction] = []
    if mean * tick <= Fraction(1, 2):  # else a hole is as good as a slower rate
        simple = (mean.limit_denominator(most) for most in range(1, _SIMPLE))
        guessed = [*simple, *_TELEVISION, mean]
    for rate in (*told, *equal, *guessed):
        if rate is not None and _sane(rate) and rate <= MOST_RATE and _fits(times, rate * tick):
            return Timing(rate)
    return Timing(mean, tick, times)


def _fits(times: npt.NDArray[np.int64], frames_per_tick: Fraction) -> bool:
    """Whether frames begin where they should, but for rounding to ticks, or to half a frame where
    that is less."""
    errors = times[:-1] - np.arange(len(times) - 1) / float(frames_per_tick)
    return bool(np.ptp(errors) <= min(1.0, 0.5 / float(frames_per_tick)) + 1e-6)


def _sane(number: Fraction) -> bool:
    return 0 < number.numerator <= _MOST_NUMBER and number.denominator <= _MOST_NUMBER
