"""How long one position takes."""

from __future__ import annotations

import time

import numpy as np

from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampling

_POSITIONS, _WARM_UP = 24, 4


def position_seconds(engine: Engine, positions: int = _POSITIONS) -> float:
    """Median seconds of a position, of one image with the model's own guidance."""
    laps = []
    began = time.perf_counter()
    for drawn in engine.generate([0], Sampling(seed=0)):
        now = time.perf_counter()
        laps.append(now - began)
        began = now
        if drawn.position + 1 == positions:
            break
    return float(np.median(laps[_WARM_UP:] or laps))
