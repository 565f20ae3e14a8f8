"""Measures an engine, and baselines in turns with it.

Decoding reads every weight of the steps once a position, so their bytes over the bandwidth measured
in the same run are the least time a position can take. Key and value rows are read too, and not
counted: they are no weights, and only lower the share that is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.progress import Begin, silent
from m2kit.runtime.bench.figures import Benchmark, Comparison, Limit, Stage
from m2kit.runtime.bench.memory import PositionWeights
from m2kit.runtime.bench.steadiness import measured_between
from m2kit.runtime.bench.timing import Laps, bandwidth_gb_s, time_positions, warm_up
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling

_ROUNDS = 5  # of encoder and decoder


@dataclass(slots=True)
class Baseline:
    """Another implementation of the same model, measured in the same run.

    Attributes:
        engine: Wraps it.
        positions: How many positions are timed; None is a whole image, else the rest is inferred
            from their median.
    """

    engine: Engine
    positions: int | None = None


@dataclass(slots=True)
class _Measured:
    """Of each round: laps (n, 3) of positions, seconds of all positions, laps of decoding."""

    laps: list[Laps] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    decode: list[Laps] = field(default_factory=list)

    @property
    def image_laps(self) -> Laps:
        """Seconds of each batch of images: all its positions, and their decoding."""
        return np.array(self.drawn) + np.median(np.concatenate(self.decode))


def benchmark(
    engine: Engine,
    sampling: Sampling,
    *,
    images: int = 1,
    rounds: int = 2,
    baselines: Mapping[str, Baseline] | None = None,
    begin: Begin = silent,
) -> Benchmark:
    """Measure an engine, and baselines in turns with it.

    Args:
        engine: The engine. Where its backend computes on the host, its threads read memory; where
            not, there is no bandwidth, and both steps are one stage: a step returns before it has
            computed.
        sampling: How to draw.
        images: Drawn at once (B).
        rounds: Generations; the baselines' fall between them.
        baselines: Name -> what to compare with.
        begin: Called with the name of each stage.
    """
    blank = np.zeros((images, 3, *engine.spec.size_of_grid(engine.transformer.grid)), np.float32)
    for name, other in (baselines or {}).items():
        begin(f"warming up {name}")
        warm_up(other.engine, sampling, images)

    def measure() -> tuple[_Measured, dict[str, _Measured], Laps]:
        own, others = _rounds(engine, sampling, images, rounds, baselines or {}, begin)
        begin("encoding")
        return own, others, _seconds(engine.encode, blank)

    (own, others, encode), bandwidth = measured_between(
        lambda again: _bandwidth(f"measuring memory bandwidth{again}", engine, begin), measure
    )
    stages, limit = _stages(engine, own, encode, bandwidth.best)
    inter, intra, whole = np.concatenate(own.laps).sum(axis=0)
    image_seconds = float(np.median(own.image_laps)) / images
    image_ms = round(image_seconds * 1e3, 1)
    return Benchmark(
        batch=images,
        bandwidth_gb_s=bandwidth.best,
        bandwidth_before_gb_s=bandwidth.before,
        bandwidth_after_gb_s=bandwidth.after,
        steady=bandwidth.steady,
        attempts=bandwidth.attempts,
        stages=stages,
        image_ms=image_ms,
        images_per_second=round(1 / image_seconds, 4),
        ar_images_per_second=round(images / float(np.median(own.drawn)), 4),
        overhead_share=round(float((whole - inter - intra) / whole), 4),
        limit=limit,
        baselines={name: _comparison(other, images, image_ms) for name, other in others.items()},
    )


def _rounds(
    engine: Engine,
    sampling: Sampling,
    images: int,
    rounds: int,
    baselines: Mapping[str, Baseline],
    begin: Begin,
) -> tuple[_Measured, dict[str, _Measured]]:
    """Draw and decode with the engine in every round, with each baseline in the first."""
    whole = engine.transformer.positions

    def measure(measured: _Measured, what: Baseline, stage: str) -> None:
        advance = begin(stage, what.positions or whole)
        laps, tokens = time_positions(what.engine, sampling, images, what.positions, advance)
        seconds = laps[:, 2]
        measured.laps.append(laps)
        measured.drawn.append(
            float(seconds.sum() if len(laps) == whole else np.median(seconds) * whole)
        )
        measured.decode.append(_seconds(what.engine.decode, tokens))

    own, others = _Measured(), {name: _Measured() for name in baselines}
    for lap in range(rounds):
        measure(own, Baseline(engine), f"drawing, round {lap + 1} of {rounds}")
        for name, other in baselines.items() if lap == 0 else ():
            measure(others[name], other, f"drawing with {name}")
    return own, others


def _stages(
    engine: Engine, own: _Measured, encode: Laps, bandwidth: float | None
) -> tuple[dict[str, Stage], Limit | None]:
    inter, intra, whole = np.concatenate(own.laps).T
    if bandwidth is None:
        steps, limit = {"steps": Stage.of(inter + intra)}, None
    else:
        stored = engine.info.built.weight_bytes if engine.info else None
        need = PositionWeights.of(stored, engine.transformer.sub_tokens) if stored else None
        steps = {
            "inter": Stage.of(inter, need.inter if need else None),
            "intra": Stage.of(intra, need.intra if need else None),
        }
        limit = Limit.of(need.total, bandwidth, float(np.median(whole))) if need else None
    stages = {
        "encode": Stage.of(encode),
        **steps,
        "sampling": Stage.of(whole - inter - intra),  # the loop, guidance, filters and draws
        "position": Stage.of(whole),
        "decode": Stage.of(np.concatenate(own.decode)),
        "image": Stage.of(own.image_laps),
    }
    return stages, limit


def _comparison(measured: _Measured, images: int, own_ms: float) -> Comparison:
    milliseconds = float(np.median(measured.image_laps)) / images * 1e3
    return Comparison(
        image_ms=round(milliseconds, 1),
        position_ms=Stage.of(measured.laps[0][:, 2]).median_ms,
        image_speedup=round(milliseconds / own_ms, 2),
    )


def _bandwidth(stage: str, engine: Engine, begin: Begin) -> float | None:
    if engine.backend.threads is None:
        return None
    begin(stage)
    return round(bandwidth_gb_s(engine.backend.threads), 2)


def _seconds(function: Callable[[Any], Any], argument: npt.NDArray[Any]) -> Laps:
    """Seconds of each of a few calls, after one to warm up."""
    function(argument)
    marks = [time.perf_counter()]
    for _ in range(_ROUNDS):
        function(argument)
        marks.append(time.perf_counter())
    return np.diff(marks)
