"""Seconds of every position, taken around the backend's runs, and the memory's bandwidth."""

from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np
import numpy.typing as npt

from m2kit.progress import Advance
from m2kit.runtime.arguments import image_numbers_of
from m2kit.runtime.backend import Step, Steps, WatchedStep
from m2kit.runtime.decoding import generate_positions
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampler
from m2kit.sampling import Sampling

_BUFFER_FLOATS = 250_000_000  # 1 GB, far beyond any cache
_READS = 5
_WARM_UP = 4  # positions
_WARM_UP_SECONDS = 10.0  # at most, of an image
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


def warm_up(engine: Engine, sampling: Sampling, images: int = 1) -> None:
    """Draw images (B) of the first classes once, or as many positions of them as fit in ten
    seconds: what a library does at its first calls can take longer than all that is timed."""
    ends = time.perf_counter() + _WARM_UP_SECONDS
    for _ in engine.generate(np.arange(images) % engine.transformer.classes, sampling):
        if time.perf_counter() > ends:
            return


def time_positions(
    engine: Engine,
    sampling: Sampling,
    images: int = 1,
    positions: int | None = None,
    advance: Advance = lambda count: None,
) -> tuple[Laps, npt.NDArray[np.int64]]:
    """Draw images (B) of the first classes and, after a warm-up, time so many positions from the
    first, or all; `advance` is called with 1 after each.

    Returns:
        (positions, 3) seconds in the inter step, in the intra step's K runs, and in all; and the
        tokens (B, h, w, K).
    """
    spec = engine.transformer
    classes, resolved = engine.check_draw(np.arange(images) % spec.classes, sampling)
    rows = engine.rows_of(classes, [resolved] * images)
    sampler = Sampler([resolved] * images, image_numbers_of(None, images), spec.positions)
    opened, seconds = engine.backend.open_steps(len(rows.classes)), np.zeros(2)
    steps = Steps(_timed(opened.inter, seconds[:1]), _timed(opened.intra, seconds[1:]))
    for _ in islice(generate_positions(steps, spec, rows, sampler), _WARM_UP):
        pass
    laps = [(*seconds, time.perf_counter())]
    for drawn in islice(generate_positions(steps, spec, rows, sampler), positions):
        laps.append((*seconds, time.perf_counter()))
        advance(1)
        tokens = drawn.tokens
    return np.diff(laps, axis=0), tokens


def _timed(step: Step, seconds: Laps) -> WatchedStep:
    """The step, whose runs add what they take to the only element of `seconds`."""

    def run(position: int) -> None:
        began = time.perf_counter()
        step.run(position)
        seconds[0] += time.perf_counter() - began

    return WatchedStep(step, run)


def position_seconds(engine: Engine, positions: int = 24) -> float:
    """Median seconds of a position of one image, with the model's own sampling."""
    laps, _ = time_positions(engine, Sampling(), positions=positions)
    return float(np.median(laps[:, 2]))
