"""What /metrics tells, in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, math.inf)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Latencies:
    """Seconds from a request to the end of its answer, counted by bounds."""

    def __init__(self) -> None:
        self._lock, self._counts = threading.Lock(), [0] * len(_BOUNDS_S)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        place = next(i for i, bound in enumerate(_BOUNDS_S) if seconds <= bound)
        with self._lock:
            self._counts[place] += 1
            self._sum += seconds

    def lines(self, name: str, what: str) -> Iterable[str]:
        """As a histogram of that name."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        yield from _head(name, "histogram", what)
        below = 0
        for bound, count in zip(_BOUNDS_S, counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{"+Inf" if bound == math.inf else bound}"}} {below}'
        yield f"{name}_sum {total}"
        yield f"{name}_count {below}"


def metrics_text(
    gauges: dict[str, tuple[float, str]],
    counters: dict[str, tuple[float, str]],
    histograms: dict[str, tuple[Latencies, str]],
) -> str:
    """Name -> value, and what it is, of each kind, as text."""
    lines: list[str] = []
    for kind, values in (("gauge", gauges), ("counter", counters)):
        for name, (value, what) in values.items():
            lines += [*_head(name, kind, what), f"{name} {value}"]
    for name, (latencies, what) in histograms.items():
        lines += latencies.lines(name, what)
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
