"""What a benchmark found, as records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2kit.records import JsonObject, to_json
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
