"""Measuring between two readings of what the machine can do: where they differ, it was busy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Found = TypeVar("Found")
_ATTEMPTS = 3
_STEADY = 0.1  # by how much the readings before and after may differ


@dataclass(frozen=True, slots=True)
class Readings:
    """Of the last attempt.

    Attributes:
        before: Reading before it; None where nothing is read.
        after: Reading after it.
        steady: Whether the two are near each other.
        attempts: How often it was tried.
    """

    before: float | None
    after: float | None
    steady: bool
    attempts: int

    @property
    def best(self) -> float | None:
        """The higher reading."""
        return max((read for read in (self.before, self.after) if read is not None), default=None)


def measured_between(
    read: Callable[[str], float | None],
    measure: Callable[[], Found],
    patience_seconds: float = math.inf,
) -> tuple[Found, Readings]:
    """What `measure` returns, and what was read before and after it; again where they differ by
    over 10 %, three times at most, and never after one that took longer than the patience.

    Args:
        read: Reads; takes what its stage's name ends in.
        measure: Measures.
        patience_seconds: Of one attempt.
    """
    attempt, steady, seconds = 0, False, 0.0
    while not steady and attempt < _ATTEMPTS and seconds <= patience_seconds:
        attempt += 1
        before, began = read(""), time.perf_counter()
        found = measure()
        seconds, after = time.perf_counter() - began, read(" again")
        reads = [value for value in (before, after) if value is not None]  # both, or none
        steady = not reads or max(reads) - min(reads) <= _STEADY * max(reads)
    return found, Readings(before, after, steady, attempt)
