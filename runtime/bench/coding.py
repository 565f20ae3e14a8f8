"""Measures how fast an engine encodes and decodes pictures, or clips, and baselines in turns with
it.

What is left of the speed of a convolution alone, timed in the same run, is what everything else
costs: layers of a worse shape, normalisation, and moving the values between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.host import peak_bytes
from m2kit.progress import Begin, silent
from m2kit.runtime.bench.convolution import Open, fastest
from m2kit.runtime.bench.figures import Coding, CodingBenchmark, CodingComparison, ConvolutionSpeed
from m2kit.runtime.bench.steadiness import measured_between
from m2kit.runtime.bench.timing import Laps
from m2kit.runtime.engine import Engine

_PATIENCE_SECONDS = 60.0  # of an attempt: what takes longer is not repeated on a busy machine


def benchmark_coding(
    engine: Engine,
    size: tuple[int, ...],
    *,
    batch: int = 1,
    rounds: int = 2,
    baselines: Mapping[str, Callable[[], Engine]] | None = None,
    opened: Open | None = None,
    begin: Begin = silent,
) -> CodingBenchmark:
    """Measure an engine, and in every round after it the baselines.

    Args:
        engine: The engine, freshly opened: its peak memory is taken before anything else is.
        size: Pixels of a picture along each axis.
        batch: Pictures given at once (B), of noise.
        rounds: How often they are encoded and decoded, after once to warm up.
        baselines: Name -> what makes the engine to compare with, once memory was looked at.
        opened: Makes a convolution that computes where the engine does; None leaves the share out.
        begin: Called with the name of each stage.

    Raises:
        InputError: A size that the model does not take.
    """
    noise = np.random.default_rng(0).random((batch, 3, *size), np.float32) * 2 - 1
    begin("warming up")
    _code(engine, noise)
    peak, engines = peak_bytes(), {"": engine}
    for name, make in (baselines or {}).items():
        begin(f"warming up {name}")
        engines[name] = make()
        _code(engines[name], noise)
    layers = engine.spec.tokenizer.convolutions(size)
    macs = {part: sum(layer.macs for layer in found) for part, found in layers.items()}
    timed = None
    if opened is not None and any(macs.values()):
        begin("looking for the fastest convolution")
        every = [layer for part in layers.values() for layer in part]
        timed = fastest(every, engine.compute_at_once(size, batch), opened)

    def read(again: str) -> float | None:
        if timed is None:
            return None
        begin(f"measuring it{again}")
        return round(timed.gmac_s(), 2)

    def measure() -> dict[str, Laps]:
        laps: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for lap in range(rounds):
            for name, one in engines.items():
                begin(f"coding{name and f' with {name}'}, round {lap + 1} of {rounds}")
                laps[name].append(_code(one, noise))
        return {name: np.array(of) / batch for name, of in laps.items()}

    laps, readings = measured_between(read, measure, _PATIENCE_SECONDS)
    own = laps.pop("")
    encode, decode = (
        Coding.of(own[:, i], macs[part] or None, readings.best)
        for i, part in enumerate(("encoder", "decoder"))
    )
    speed = ConvolutionSpeed.of(timed.layer, timed.pictures, readings) if timed else None
    return CodingBenchmark(
        picture_size=size,
        batch=batch,
        rounds=rounds,
        encode=encode,
        decode=decode,
        convolution=speed,
        steady=readings.steady,
        attempts=readings.attempts,
        peak_memory_bytes=peak,
        baselines={
            name: CodingComparison.of(other, encode, decode) for name, other in laps.items()
        },
    )


def _code(engine: Engine, images: npt.NDArray[Any]) -> tuple[float, float]:
    """Seconds of encoding images (B, 3, *size), and of decoding what they became."""
    began = time.perf_counter()
    tokens = engine.encode(images)
    between = time.perf_counter()
    engine.decode(tokens)
    return between - began, time.perf_counter() - between
