"""What a benchmark found, as records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2kit.families.convolution import Convolution
from m2kit.records import JsonObject, to_json
from m2kit.runtime.bench.steadiness import Readings
from m2kit.runtime.bench.timing import Laps


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of drawing, for the whole batch.

    Attributes:
        median_ms: Milliseconds.
        p95_ms: Likewise, the 95th percentile.
        gb_s: How fast it read its weights, in 1e9 bytes a second, where they are known.
        weight_bytes: Weights it needs.
    """

    median_ms: float
    p95_ms: float
    gb_s: float | None
    weight_bytes: int | None = None

    @classmethod
    def of(cls, laps: Laps, weight_bytes: int | None = None) -> Stage:
        """The stage of these laps."""
        median, p95 = map(float, np.percentile(laps * 1e3, [50, 95]))
        gb_s = round(weight_bytes / median / 1e6, 2) if weight_bytes is not None else None
        return cls(round(median, 4), round(p95, 4), gb_s, weight_bytes)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A baseline: milliseconds of an image and a position, and times as long as the engine."""

    image_ms: float
    position_ms: float
    image_speedup: float


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time a position can take: its weights' bytes over the bandwidth."""

    weight_bytes: int
    milliseconds: float
    share_reached: float

    @classmethod
    def of(cls, weight_bytes: int, bandwidth_gb_s: float, position_seconds: float) -> Limit:
        """For positions that took so long."""
        least = weight_bytes / bandwidth_gb_s / 1e9
        return cls(weight_bytes, round(least * 1e3, 3), round(least / position_seconds, 4))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured; milliseconds of the stages are those of the whole batch, those of images
    of one image of it.

    Attributes:
        batch: Images drawn at once.
        bandwidth_gb_s: Best of both measurements; None where the host does not compute.
        bandwidth_before_gb_s: Before drawing.
        bandwidth_after_gb_s: After it.
        steady: Whether the two are near each other.
        attempts: How often it was tried.
        stages: Name -> stage.
        image_ms: Of one image.
        images_per_second: Likewise.
        ar_images_per_second: Without decoding.
        overhead_share: Share of a position outside the backend's runs.
        limit: Where bandwidth and weights are known.
        baselines: Name -> comparison.
    """

    batch: int
    bandwidth_gb_s: float | None
    bandwidth_before_gb_s: float | None
    bandwidth_after_gb_s: float | None
    steady: bool
    attempts: int
    stages: dict[str, Stage]
    image_ms: float
    images_per_second: float
    ar_images_per_second: float
    overhead_share: float
    limit: Limit | None
    baselines: dict[str, Comparison]

    @property
    def position_ms(self) -> float:
        """Median of a position."""
        return self.stages["position"].median_ms

    def flat(self) -> JsonObject:
        """As `m2kit bench --json` prints it: one object of figures, stages by name."""
        value = to_json(self)
        del value["limit"], value["baselines"]
        value["position_ms"] = self.position_ms
        if self.limit is not None:
            value["position_weight_bytes"] = self.limit.weight_bytes
            value["position_limit_ms"] = self.limit.milliseconds
            value["position_share_of_limit"] = self.limit.share_reached
        for name, found in self.baselines.items():
            value[f"{name}_image_ms"] = found.image_ms
            value[f"{name}_position_ms"] = found.position_ms
            value[f"image_speedup_vs_{name}"] = found.image_speedup
        return value


@dataclass(frozen=True, slots=True)
class Coding:
    """Encoding or decoding one picture.

    Attributes:
        median_ms: Milliseconds, median of all rounds.
        least_ms: Likewise, of the fastest round.
        most_ms: Likewise, of the slowest.
        macs: Multiply-adds of its convolutions, where there are any.
        gmac_s: How many of them a second, in 1e9.
        share_of_convolution: Of what the fastest convolution does, where that was measured.
    """

    median_ms: float
    least_ms: float
    most_ms: float
    macs: int | None
    gmac_s: float | None
    share_of_convolution: float | None

    @classmethod
    def of(cls, laps: Laps, macs: int | None, best_gmac_s: float | None) -> Coding:
        """Of seconds of rounds, multiply-adds, and those a second that can be reached."""
        least, median, most = (round(float(q), 4) for q in np.percentile(laps * 1e3, [0, 50, 100]))
        gmac_s = macs / median / 1e6 if macs else None
        share = round(gmac_s / best_gmac_s, 4) if gmac_s and best_gmac_s else None
        return cls(median, least, most, macs, gmac_s and round(gmac_s, 2), share)


@dataclass(frozen=True, slots=True)
class ConvolutionSpeed:
    """The fastest convolution of the model's levels, by itself.

    Attributes:
        kernel: Along each axis.
        channels: Of its input and of its output.
        size: Positions along each axis.
        pictures: At once.
        gmac_s: 1e9 multiply-adds a second, the better of both measurements.
        gmac_s_before: Before coding.
        gmac_s_after: After it.
    """

    kernel: tuple[int, ...]
    channels: int
    size: tuple[int, ...]
    pictures: int
    gmac_s: float | None
    gmac_s_before: float | None
    gmac_s_after: float | None

    @classmethod
    def of(cls, layer: Convolution, pictures: int, readings: Readings) -> ConvolutionSpeed:
        """Of a layer, and how fast it was."""
        kernel = (layer.kernel,) * len(layer.size)
        speeds = readings.best, readings.before, readings.after
        return cls(kernel, layer.channels_in, layer.size, pictures, *speeds)


@dataclass(frozen=True, slots=True)
class CodingComparison:
    """A baseline: milliseconds of a picture, and times as long as the engine."""

    encode_ms: float
    decode_ms: float
    encode_speedup: float
    decode_speedup: float

    @classmethod
    def of(cls, laps: Laps, encode: Coding, decode: Coding) -> CodingComparison:
        """Of seconds (rounds, 2) of a picture's encoding and decoding, and the engine's own."""
        milliseconds = [round(float(ms), 4) for ms in np.median(laps * 1e3, axis=0)]
        pairs = zip(milliseconds, (encode, decode), strict=True)
        return cls(*milliseconds, *(round(ms / own.median_ms, 2) for ms, own in pairs))


@dataclass(frozen=True, slots=True)
class CodingBenchmark:
    """What was measured of a tokenizer; milliseconds are those of one picture.

    Attributes:
        picture_size: Pixels along each axis, such as (T, H, W).
        batch: Pictures given at once.
        rounds: How often they were encoded and decoded.
        encode: Pictures to tokens.
        decode: Tokens to pictures.
        convolution: What they are measured by, where it was.
        steady: Whether it was as fast before as after.
        attempts: How often that was tried.
        peak_memory_bytes: Of the process, when it had encoded and decoded once.
        baselines: Name -> comparison.
    """

    picture_size: tuple[int, ...]
    batch: int
    rounds: int
    encode: Coding
    decode: Coding
    convolution: ConvolutionSpeed | None
    steady: bool
    attempts: int
    peak_memory_bytes: int | None
    baselines: dict[str, CodingComparison]

    def flat(self) -> JsonObject:
        """As `m2kit bench --json` prints it: baselines by name beside the rest."""
        value = to_json(self)
        del value["baselines"]
        for name, found in self.baselines.items():
            for part in ("encode", "decode"):
                value[f"{name}_{part}_ms"] = getattr(found, f"{part}_ms")
                value[f"{part}_speedup_vs_{name}"] = getattr(found, f"{part}_speedup")
        return value
