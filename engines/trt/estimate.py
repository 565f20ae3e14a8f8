"""What building plans takes, told before it begins: memory is short on small devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from m2kit.config import ModelSpec
from m2kit.errors import BackendError
from m2kit.host import available_bytes
from m2kit.precision import Precision
from m2kit.runtime.trt.library import TENSORRT, TENSORRT_RTX


@dataclass(frozen=True, slots=True)
class _Cost:
    """What building takes: bytes = base + factor * weights of the largest graph."""

    base_bytes: int
    factor: float
    seconds_per_gb: float | None


_COSTS = {
    # tensorrt-rtx measured on two cores: AR-B's inter step 2.2 GB, 3.5 times its half weights;
    # AR-B's five plans 28 s, for 0.91 GB of them.
    TENSORRT_RTX: _Cost(500_000_000, 4.0, 31.0),
    # tensorrt not measured: 5 to 8 times the weights and 1.5 GB are what others report of 10.x.
    TENSORRT: _Cost(1_500_000_000, 6.0, None),
}


def needed_bytes(spec: ModelSpec, product: str, precision: Precision = Precision.FLOAT16) -> int:
    """Memory that building the largest graph takes, on the safe side."""
    cost = _COSTS[product]
    return cost.base_bytes + int(cost.factor * _weight_bytes(spec, precision, max))


def _weight_bytes(spec: ModelSpec, precision: Precision, of: Callable[[Iterable[int]], int]) -> int:
    size = 2 if precision is Precision.FLOAT16 else 4
    return size * int(of(spec.parameter_counts().values()))


def check_resources(spec: ModelSpec, product: str, precision: Precision) -> str:
    """What building will take, in words.

    Raises:
        BackendError: More memory than there is.
    """
    needed, available = needed_bytes(spec, product, precision), available_bytes()
    if available is not None and available < needed:
        raise BackendError(
            f"building needs about {needed / 1e9:.1f} GB of memory for the largest graph, "
            f"{available / 1e9:.1f} GB are available; close other programs, add swap, or build on "
            "a larger machine"
        )
    rate = _COSTS[product].seconds_per_gb
    seconds = 10 + (rate or 0) * _weight_bytes(spec, precision, sum) / 1e9
    duration = f"{seconds:.0f} s" if rate else "minutes, most of them only the first time"
    free = "" if available is None else f" of {available / 1e9:.1f} GB available"
    return f"building takes about {needed / 1e9:.1f} GB of memory{free}, and {duration}"
