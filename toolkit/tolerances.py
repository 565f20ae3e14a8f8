"""How far two implementations of the same thing may differ, in one place, with the reasons.

Values are absolute for outputs up to 1 and relative to the largest reference value above that:
rounding grows with magnitude. In float32, ids and codes have no tolerance: they are equal or not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FLOAT32_TOLERANCES: dict[str, float] = {
    "latent": 1e-4,  # a sum of ~1000 products a convolution, some 20 convolutions deep
    "image": 1e-4,  # the same; 1e-4 is 1/78 of one 8-bit grey level
    "logits": 1e-4,  # measured 1e-6 to 1e-5 at widths 64 to 1024, 4 to 48 layers
}

# A half engine against the float32 reference, at most. float16 keeps 11 bits: a layer's rounding is
# about 5e-4 of its values, and layers add up. What was measured is the emulation of half precision
# on the golden AR model, whose random weights are worse than the digits' trained ones. It sums
# products in float32; a GPU's kernel that sums in half is further away, refused beyond these.
DIFFERING_BITS = "differing code bits"
DIFFERING_LATENT = "largest latent of a differing bit"
RMS_ERROR = "rms error"
KL = "KL divergence"
ARG_MAX = "differing arg max"
NEAR_TIE = "near tie"
NOT_FINITE = "values not finite"
HALF_TOLERANCES: dict[str, float] = {
    DIFFERING_BITS: 0.005,  # share of the encoder's bits (or two bits, of a small reference)
    DIFFERING_LATENT: 0.02,  # a bit may flip only where the latent is nearly 0; measured 5e-4
    RMS_ERROR: 0.01,  # of images in [-1, 1]: a PSNR of 46 dB; measured 0.0016
    # Guidance u + s (c - u) enlarges an error by |1-s| + s, and KL by its square.
    KL: 1e-3,  # nats, mean over positions; measured 2e-5
    ARG_MAX: 0.01,  # share of positions (or two, of a small reference), near ties not counted
    NEAR_TIE: 0.02,  # nats: ids whose probabilities are within 2 % of each other
    NOT_FINITE: 0,
}

# The quality gate of integer weights, against the same reference: the steps alone are lossy, the
# tokenizer stays float32. KL and arg max are what decides what is drawn. Measured at int8: KL 8e-5
# (digits), 2e-4 (emoji), 1.6e-3 (AR-B, random weights), 5.3e-3 (the golden AR model, random and
# small: the worst there is); at int4, in blocks of 32 to the nearest, 2.6e-3, 6e-3, 0.15, 0.38; by
# what weights do in blocks of 128 emoji has 3.6e-3; with shuffled scales over 1. What
# emoji's images lose (examples/emoji/README.md, 1,350 of them): nothing at int8 and int4, nothing
# with weights of 3 bits, at KL 0.03; with 2 bits, at 0.09 and 0.16, FD and KID rise by 8 and 14 %.
# So int4 may have what 3 bits have. int8 may have less: at int4's there is no reason for int8. The
# image is of the likeliest ids: where two are nearly as likely either is a valid picture, so pixels
# tell a broken model only. Unrelated pictures are 8 to 10 dB apart.
QUANTIZED_TOLERANCES: dict[str, dict[str, float]] = {
    "int8": {KL: 1e-2, ARG_MAX: 0.03, NEAR_TIE: 0.1, RMS_ERROR: 0.5},  # 12 dB
    "int4": {KL: 3e-2, ARG_MAX: 0.15, NEAR_TIE: 0.5, RMS_ERROR: 0.63},  # 10 dB
}


def difference(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Largest absolute difference, divided by the largest expected value where that is over 1."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    wide = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.abs(wide).max(initial=0.0)) / scale
