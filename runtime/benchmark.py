"""How fast an opened engine is, stage by stage, and how far from the memory's own limit.

Decoding reads every weight of the steps once a position, so their bytes over the bandwidth measured
in the same run are the least time a position can take. Key and value rows are read too, and not
counted: they are no weights, and only lower the share that is reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.memory import resident_bytes
from m2kit.progress import Advance, Begin, silent
from m2kit.runtime.backend import Backend, Step, Steps
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampling

_BUFFER_FLOATS = 250_000_000  # 1 GB, far beyond any cache
_READS = 5
_WARM_UP = 4  # positions
_ROUNDS = 5  # of encoder and decoder
_ATTEMPTS = 3
_STEADY = 0.1  # by how much bandwidth before and after may differ
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
        self.largest_batch, self.largest_rows = backend.largest_batch, backend.largest_rows
        self.image_sizes = backend.image_sizes
        self.run, self.active, self.close = backend.run, backend.active, backend.close
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


def weight_bytes(weights: Mapping[str, int], sub_tokens: int) -> dict[str, int]:
    """Stored bytes of weights that one position needs: of the inter step, of all K intra runs with
    one head each, and of the embedding rows.

    Args:
        weights: engine.json's build.weight_bytes.
        sub_tokens: K.
    """
    return {
        "inter": weights["inter_step"] + (sub_tokens + 1) * weights["row"],
        "intra": sub_tokens * weights["intra_step"] + weights["heads"],
    }


def memory_bytes(engine: Engine, rows: int) -> dict[str, Any]:
    """What peak memory is compared with: the sum of weights, caches and decoder activations.

    Args:
        engine: Freshly opened; its decoder is opened by this.
        rows: R, of the caches: twice the images drawn at once where they are guided.

    Returns:
        Stored bytes of the weights, of the caches of R rows, what decoding one image took beyond
        them, their sum (None where one is not known), and "decode_seconds", of that decoding.
    """
    spec = engine.transformer
    code_bits = engine.spec.tokenizer.code_bits
    height, width = spec.grid
    slots = spec.inter_layers * spec.positions + spec.intra_layers * len(spec.bits)
    found: dict[str, Any] = {"cache_bytes": 2 * slots * rows * spec.width * 4}
    stored = engine.info.build.get("weight_bytes") if engine.info else None
    names = ("inter_step", "intra_step", "heads", "tables", "decoder")
    found["weights_bytes"] = sum(stored[name] for name in names) if stored else None
    if engine.backend.image_sizes is None:  # a small image opens the decoder and needs next to none
        engine.backend.run(contract.DECODER, {contract.CODES: np.ones((1, code_bits, 2, 1), "f")})
    before = resident_bytes()
    began = time.perf_counter()
    codes = np.ones((1, code_bits, height, width), np.float32)
    engine.backend.run(contract.DECODER, {contract.CODES: codes})
    found["decode_seconds"] = time.perf_counter() - began
    after = resident_bytes()
    found["decoder_bytes"] = after - before if after and before else None
    parts = [found[name] for name in ("weights_bytes", "cache_bytes", "decoder_bytes")]
    return found | {"expected_memory_bytes": None if None in parts else sum(parts)}


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
    threads: int | None,
    images: int = 1,
    rounds: int = 2,
    baselines: Mapping[str, Baseline] | None = None,
    begin: Begin = silent,
) -> dict[str, Any]:
    """Measure an engine, and baselines in turns with it.

    Args:
        engine: The engine.
        sampling: How to draw.
        threads: The backend's own, which read memory; None for one that computes elsewhere and
            returns before it has: then there is no bandwidth, and both steps are one stage.
        images: Drawn at once (B).
        rounds: Generations; the baselines' fall between them.
        baselines: Name -> what to compare with.
        begin: Called with the name of each stage.

    Returns:
        What `m2kit bench --json` prints, but for memory and machine: milliseconds of the stages
        are those of the whole batch, "image_ms" and its kin those of one image of it.
    """
    spec, others = engine.transformer, dict(baselines or {})
    attempts = 0
    while attempts < _ATTEMPTS:
        attempts += 1
        before = _bandwidth("measuring memory bandwidth", threads, begin)
        own = _Measured()
        measured: dict[str, _Measured] = {}
        for lap in range(rounds):
            advance = begin(f"drawing, round {lap + 1} of {rounds}", spec.positions)
            own.measure(engine, sampling, images, None, advance)
            for name, other in others.items() if lap == 0 else ():
                advance = begin(f"drawing with {name}", other.positions or spec.positions)
                measured[name] = _Measured()
                measured[name].measure(other.engine, sampling, images, other.positions, advance)
        begin("encoding")
        encode = _seconds(engine.encode, np.zeros((images, 3, *_pixels(engine)), np.float32))
        after = _bandwidth("measuring memory bandwidth again", threads, begin)
        steady = before is None or after is None
        if before is not None and after is not None:
            steady = abs(before - after) <= _STEADY * max(before, after)
        if steady:
            break
    bandwidth = max(before, after) if before is not None and after is not None else None
    result = _result(engine, own, encode, images, bandwidth)
    for name, found in measured.items():
        milliseconds = float(np.median(found.image_laps(spec.positions))) / images * 1e3
        result[f"{name}_image_ms"] = round(milliseconds, 1)
        result[f"{name}_position_ms"] = _stage(found.laps[0].whole)["median_ms"]
        result[f"image_speedup_vs_{name}"] = round(milliseconds / result["image_ms"], 2)
    return result | {
        "bandwidth_before_gb_s": before,
        "bandwidth_after_gb_s": after,
        "steady": steady,
        "attempts": attempts,
    }


def _bandwidth(label: str, threads: int | None, begin: Begin) -> float | None:
    if threads is None:
        return None
    begin(label)
    return round(bandwidth_gb_s(threads), 2)


def _result(
    engine: Engine, own: _Measured, encode: Laps, images: int, bandwidth: float | None
) -> dict[str, Any]:
    spec = engine.transformer
    positions = spec.positions
    inter, intra, whole, rest = (
        np.concatenate([getattr(lap, name) for lap in own.laps])
        for name in ("inter", "intra", "whole", "sampling")
    )
    image_laps = own.image_laps(positions)
    steps = {"inter": inter, "intra": intra} if bandwidth else {"steps": inter + intra}
    stages = {
        "encode": _stage(encode),
        **{name: _stage(laps) for name, laps in steps.items()},
        "sampling": _stage(rest),
        "position": _stage(whole),
        "decode": _stage(np.concatenate(own.decode)),
        "image": _stage(image_laps),
    }
    image = float(np.median(image_laps)) / images
    drawn = float(np.median([lap.whole.sum() for lap in own.laps]))
    result: dict[str, Any] = {
        "batch": images,
        "bandwidth_gb_s": bandwidth,
        "stages": stages,
        "position_ms": stages["position"]["median_ms"],
        "image_ms": round(image * 1e3, 1),
        "images_per_second": round(1 / image, 4),
        "ar_images_per_second": round(images / drawn, 4),
        "overhead_share": round(float(rest.sum() / whole.sum()), 4),
    }
    stored = engine.info.build.get("weight_bytes") if engine.info else None
    if stored is not None and bandwidth:
        need = weight_bytes(stored, len(spec.bits))
        for (name, count), laps in zip(need.items(), (inter, intra), strict=True):
            stages[name]["weight_bytes"] = count
            stages[name]["gb_s"] = round(count / float(np.median(laps)) / 1e9, 2)
        limit = sum(need.values()) / bandwidth / 1e9
        result |= {
            "position_weight_bytes": sum(need.values()),
            "position_limit_ms": round(limit * 1e3, 3),
            "position_share_of_limit": round(limit / float(np.median(whole)), 4),
        }
    return result


def _stage(laps: Laps) -> dict[str, Any]:
    median, p95 = np.percentile(laps * 1e3, [50, 95])
    return {"median_ms": round(float(median), 4), "p95_ms": round(float(p95), 4), "gb_s": None}


def _seconds(function: Callable[[Any], Any], argument: npt.NDArray[Any]) -> Laps:
    """Seconds of each of a few calls, after one to warm up."""
    function(argument)
    laps = np.empty(_ROUNDS)
    for lap in range(_ROUNDS):
        began = time.perf_counter()
        function(argument)
        laps[lap] = time.perf_counter() - began
    return laps


def _pixels(engine: Engine) -> tuple[int, int]:
    factor = engine.spec.tokenizer.downsampling
    height, width = engine.transformer.grid
    return height * factor, width * factor
