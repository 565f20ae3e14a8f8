"""Measures an engine, and baselines in turns with it.

Decoding reads every weight of the steps once a position, so their bytes over the bandwidth measured
in the same run are the least time a position can take. Key and value rows are read too, and not
counted: they are no weights, and only lower the share that is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.progress import Advance, Begin, silent
from m2kit.runtime.bench.figures import Benchmark, Comparison, Limit, Stage
from m2kit.runtime.bench.memory import PositionWeights
from m2kit.runtime.bench.timing import Laps, PositionLaps, bandwidth_gb_s, time_positions
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling

_ROUNDS = 5  # of encoder and decoder
_ATTEMPTS = 3
_STEADY = 0.1  # by how much bandwidth before and after may differ


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
    laps: list[PositionLaps] = field(default_factory=list)
    decode: list[Laps] = field(default_factory=list)

    def measure(
        self,
        engine: Engine,
        sampling: Sampling,
        images: int,
        positions: int | None,
        advance: Advance,
    ) -> None:
        """Draw once and decode what was drawn a few times."""
        laps, tokens = time_positions(engine, sampling, images, positions, advance)
        self.laps.append(laps)
        self.decode.append(_seconds(engine.decode, tokens))

    def image_laps(self, positions: int) -> Laps:
        """Seconds of each batch of images: all its positions, and their decoding."""
        drawn = [
            lap.whole.sum() if len(lap.whole) == positions else np.median(lap.whole) * positions
            for lap in self.laps
        ]
        return np.array(drawn) + np.median(np.concatenate(self.decode))


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
    spec, threads = engine.transformer, engine.backend.threads
    attempts = 0
    while attempts < _ATTEMPTS:
        attempts += 1
        before = _bandwidth("measuring memory bandwidth", threads, begin)
        own, others = _rounds(engine, sampling, images, rounds, dict(baselines or {}), begin)
        begin("encoding")
        size = engine.spec.size_of_grid(spec.grid)
        encode = _seconds(engine.encode, np.zeros((images, 3, *size), np.float32))
        after = _bandwidth("measuring memory bandwidth again", threads, begin)
        steady = before is None or after is None
        if before is not None and after is not None:
            steady = abs(before - after) <= _STEADY * max(before, after)
        if steady:
            break
    bandwidth = max(before, after) if before is not None and after is not None else None
    found = _Figures.of(own, spec.positions)
    image_ms = round(found.image / images * 1e3, 1)
    need = _position_weights(engine) if bandwidth else None
    limit = None
    if need is not None and bandwidth is not None:
        least = need.total / bandwidth / 1e9
        reached = round(least / float(np.median(found.whole)), 4)
        limit = Limit(need.total, round(least * 1e3, 3), reached)
    return Benchmark(
        batch=images,
        bandwidth_gb_s=bandwidth,
        bandwidth_before_gb_s=before,
        bandwidth_after_gb_s=after,
        steady=steady,
        attempts=attempts,
        stages=_stages(found, own, encode, need, split=bandwidth is not None),
        image_ms=image_ms,
        images_per_second=round(images / found.image, 4),
        ar_images_per_second=round(images / found.drawn, 4),
        overhead_share=round(float(found.rest.sum() / found.whole.sum()), 4),
        limit=limit,
        baselines={
            name: _comparison(measured, spec.positions, images, image_ms)
            for name, measured in others.items()
        },
    )


def _rounds(
    engine: Engine,
    sampling: Sampling,
    images: int,
    rounds: int,
    baselines: Mapping[str, Baseline],
    begin: Begin,
) -> tuple[_Measured, dict[str, _Measured]]:
    positions = engine.transformer.positions
    own, others = _Measured(), {name: _Measured() for name in baselines}
    for lap in range(rounds):
        advance = begin(f"drawing, round {lap + 1} of {rounds}", positions)
        own.measure(engine, sampling, images, None, advance)
        for name, other in baselines.items() if lap == 0 else ():
            advance = begin(f"drawing with {name}", other.positions or positions)
            others[name].measure(other.engine, sampling, images, other.positions, advance)
    return own, others


@dataclass(frozen=True, slots=True)
class _Figures:
    """Laps of every position, and seconds of a batch: whole, and without decoding."""

    inter: Laps
    intra: Laps
    whole: Laps
    rest: Laps
    image_laps: Laps
    image: float
    drawn: float

    @classmethod
    def of(cls, measured: _Measured, positions: int) -> _Figures:
        inter, intra, whole, rest = (
            np.concatenate([getattr(lap, name) for lap in measured.laps])
            for name in ("inter", "intra", "whole", "sampling")
        )
        image_laps = measured.image_laps(positions)
        drawn = float(np.median([lap.whole.sum() for lap in measured.laps]))
        return cls(inter, intra, whole, rest, image_laps, float(np.median(image_laps)), drawn)


def _stages(
    found: _Figures, own: _Measured, encode: Laps, need: PositionWeights | None, *, split: bool
) -> dict[str, Stage]:
    steps = {"inter": found.inter, "intra": found.intra}
    if not split:
        steps = {"steps": found.inter + found.intra}
    stages = {name: Stage.of(laps) for name, laps in steps.items()}
    if need is not None:
        for name, count in (("inter", need.inter), ("intra", need.intra)):
            speed = round(count / float(np.median(steps[name])) / 1e9, 2)
            stages[name] = replace(stages[name], weight_bytes=count, gb_s=speed)
    return {
        "encode": Stage.of(encode),
        **stages,
        "sampling": Stage.of(found.rest),
        "position": Stage.of(found.whole),
        "decode": Stage.of(np.concatenate(own.decode)),
        "image": Stage.of(found.image_laps),
    }


def _position_weights(engine: Engine) -> PositionWeights | None:
    stored = engine.info.built.weight_bytes if engine.info else None
    return PositionWeights.of(stored, engine.transformer.sub_tokens) if stored else None


def _comparison(measured: _Measured, positions: int, images: int, own_ms: float) -> Comparison:
    milliseconds = float(np.median(measured.image_laps(positions))) / images * 1e3
    return Comparison(
        image_ms=round(milliseconds, 1),
        position_ms=Stage.of(measured.laps[0].whole).median_ms,
        image_speedup=round(milliseconds / own_ms, 2),
    )


def _bandwidth(label: str, threads: int | None, begin: Begin) -> float | None:
    if threads is None:
        return None
    begin(label)
    return round(bandwidth_gb_s(threads), 2)


def _seconds(function: Callable[[Any], Any], argument: npt.NDArray[Any]) -> Laps:
    """Seconds of each of a few calls, after one to warm up."""
    function(argument)
    laps = np.empty(_ROUNDS)
    for lap in range(_ROUNDS):
        began = time.perf_counter()
        function(argument)
        laps[lap] = time.perf_counter() - began
    return laps
