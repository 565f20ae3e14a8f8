"""Seconds of every position, taken around the backend's runs, and the memory's bandwidth."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.progress import Advance
from m2kit.runtime.backend import Backend, Step, Steps
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling

_BUFFER_FLOATS = 250_000_000  # 1 GB, far beyond any cache
_READS = 5
_WARM_UP = 4  # positions
Laps = npt.NDArray[np.float64]  # seconds


def bandwidth_gb_s(threads: int) -> float:
    """Best of 5 reads of a 1 GB float32 buffer by that many threads, in 1e9 bytes a second."""
    buffer: npt.NDArray[np.float32] = np.ones(_BUFFER_FLOATS, np.float32)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    for _ in range(_READS):
        readers = [threading.Thread(target=part.max) for part in parts]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = min(best, time.perf_counter() - began)
    return buffer.nbytes / best / 1e9


class _TimedStep:
    """A step that notes how long its runs take."""

    def __init__(self, step: Step) -> None:
        self.inputs, self.outputs = step.inputs, step.outputs
        self.reset, self.commit = step.reset, step.commit
        self._step = step
        self.seconds = 0.0

    def run(self, position: int) -> None:
        """Run and add up."""
        began = time.perf_counter()
        self._step.run(position)
        self.seconds += time.perf_counter() - began


@dataclass(slots=True)
class _TimedSteps:
    inter: _TimedStep
    intra: _TimedStep


class _TimedBackend:
    """A backend whose steps are timed, opened once."""

    def __init__(self, backend: Backend) -> None:
        self.largest_rows, self.image_sizes = backend.largest_rows, backend.image_sizes
        self.threads, self.device = backend.threads, backend.device
        self.run, self.active, self.close = backend.run, backend.active, backend.close
        self.images_at_once = backend.images_at_once
        self._backend = backend
        self._opened: dict[int, _TimedSteps] = {}

    def open_steps(self, rows: int) -> Steps:
        """The steps for so many rows."""
        if rows not in self._opened:
            steps = self._backend.open_steps(rows)
            self._opened[rows] = _TimedSteps(_TimedStep(steps.inter), _TimedStep(steps.intra))
        return self._opened[rows]

    @property
    def steps(self) -> _TimedSteps:
        """The only steps that were opened."""
        (opened,) = self._opened.values()
        return opened


@dataclass(frozen=True, slots=True)
class PositionLaps:
    """Seconds of every position of one generation."""

    inter: Laps
    intra: Laps  # all K runs
    whole: Laps

    @property
    def sampling(self) -> Laps:
        """What is outside the backend's runs: guidance, filters, draws, the loop itself."""
        return self.whole - self.inter - self.intra


def time_positions(
    engine: Engine,
    sampling: Sampling,
    images: int = 1,
    positions: int | None = None,
    advance: Advance = lambda count: None,
) -> tuple[PositionLaps, npt.NDArray[np.int64]]:
    """Draw images of the first classes and time every position after a warm-up.

    Args:
        engine: Any backend.
        sampling: How to draw.
        images: B.
        positions: How many, from the first; all by default.
        advance: Called with 1 after each.

    Returns:
        The laps, and the tokens (B, h, w, K).
    """
    timed = _TimedBackend(engine.backend)
    own = Engine(engine.spec, timed, defaults=engine.defaults)
    classes = np.arange(images) % engine.transformer.classes
    count = positions or engine.transformer.positions
    for drawn in own.generate(classes, sampling):
        if drawn.position + 1 >= min(_WARM_UP, count):
            break
    laps = []
    steps = timed.steps
    before = (steps.inter.seconds, steps.intra.seconds, time.perf_counter())
    for drawn in own.generate(classes, sampling):
        after = (steps.inter.seconds, steps.intra.seconds, time.perf_counter())
        laps.append(np.subtract(after, before))
        before = after
        advance(1)
        tokens = drawn.tokens
        if drawn.position + 1 == count:
            break
    return PositionLaps(*np.array(laps).T), tokens


def position_seconds(engine: Engine, positions: int = 24) -> float:
    """Median seconds of a position of one image, with the model's own sampling."""
    laps, _ = time_positions(engine, Sampling(), positions=positions)
    return float(np.median(laps.whole))
