"""How far a lossy engine is from the exact one, in numbers that mean something for sampling.

Both score the same tokens, so every distribution has the same context. Drawn images cannot be
compared id by id: one early draw that falls to another side changes all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ScoreQuality:
    """Teacher-forced agreement, one value per sub-token.

    Attributes:
        kl: Mean Kullback-Leibler divergence of the lossy distribution from the exact one, in nats.
        top1: Share of positions whose likeliest id is the same.
    """

    kl: tuple[float, ...]
    top1: tuple[float, ...]


def score_quality(exact: Logits, lossy: Logits) -> ScoreQuality:
    """Compare K arrays (..., V_k) of logits over the same tokens."""
    kl, top1 = [], []
    for right, found in zip(exact, lossy, strict=True):
        a, b = _log_softmax(right), _log_softmax(found)
        kl.append(float((np.exp(a) * (a - b)).sum(axis=-1).mean()))
        top1.append(float((right.argmax(axis=-1) == found.argmax(axis=-1)).mean()))
    return ScoreQuality(tuple(kl), tuple(top1))


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
