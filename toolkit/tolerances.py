"""How far two implementations of the same thing may differ, in one table, with the reasons.

Values are absolute for outputs up to 1 and relative to the largest reference value above that:
float32 rounding grows with magnitude. Ids and codes have no tolerance: they are equal or not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FLOAT32_TOLERANCES: dict[str, float] = {
    "latent": 1e-4,  # a sum of ~1000 products a convolution, some 20 convolutions deep
    "image": 1e-4,  # the same; 1e-4 is 1/78 of one 8-bit grey level
    "logits": 1e-4,  # measured 1e-6 to 1e-5 at widths 64 to 1024, 4 to 48 layers
}


def difference(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Largest absolute difference, divided by the largest expected value where that is over 1."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    wide = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.abs(wide).max(initial=0.0)) / scale
