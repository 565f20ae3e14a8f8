"""How far a lossy engine is from the exact one, in numbers that mean something for sampling.

Both score the same tokens, so every distribution has the same context. An image of a sampled set
cannot be compared id by id: one early draw that falls to another side changes all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import draw, guide, probabilities, uniforms
from m2kit.sampling import ResolvedSampling, Sampling

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
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@dataclass(frozen=True, slots=True)
class DrawQuality:
    """Images drawn with the same uniforms.

    Attributes:
        cdf_mean: Largest difference of the two cumulative distributions of a draw, mean over draws.
        cdf_p99: The same, 99th percentile.
        equal_ids: Share of ids that are the same.
        differing_images: Images with any other id.
        explained: How many of these part from the exact image at a draw whose uniform lies between
            the two distributions' boundaries, to the id which that tells.
    """

    cdf_mean: float
    cdf_p99: float
    equal_ids: float
    differing_images: int
    explained: int


def draw_quality(
    exact: Engine, lossy: Engine, class_ids: npt.NDArray[np.int64], sampling: Sampling
) -> DrawQuality:
    """Draw an image per class id from both engines and compare every distribution on the way.

    Args:
        exact: The reference.
        lossy: The engine to judge.
        class_ids: (B).
        sampling: How to draw; the exact engine's defaults where it says None.
    """
    spec, images = exact.transformer, len(class_ids)
    resolved = sampling.resolve(spec.sub_tokens, exact.defaults)
    given = Sampling(
        seed=resolved.seed,
        guidance=resolved.guidance,
        temperature=resolved.temperature,
        top_k=resolved.top_k,
        top_p=resolved.top_p,
    )
    tokens, others = exact.sample(class_ids, given), lossy.sample(class_ids, given)
    rows = np.concatenate([class_ids, np.full_like(class_ids, spec.classes)])
    forced = np.concatenate([tokens, tokens])
    cumulative = [
        _cumulative(engine.score(rows, forced), images, resolved) for engine in (exact, lossy)
    ]
    gaps = [np.abs(a - b).max(axis=-1) for a, b in zip(*cumulative, strict=True)]
    flat, found = (t.reshape(images, spec.positions, -1) for t in (tokens, others))
    uniform = uniforms(resolved.seed, np.arange(images, dtype=np.uint64), flat[0].size)
    uniform = uniform.reshape(flat.shape)
    differing = [image for image in range(images) if (flat[image] != found[image]).any()]
    explained = 0
    for image in differing:
        position, k = np.argwhere(flat[image] != found[image])[0]
        u = uniform[image, position, k]
        f, g = (part[k][image, position] for part in cumulative)
        lower = min(flat[image, position, k], found[image, position, k])
        between = min(f[lower], g[lower]) <= u <= max(f[lower], g[lower])
        told = draw(np.diff(g, prepend=0.0)[None], np.array([u]))[0]
        explained += int(between and told == found[image, position, k])
    together = np.concatenate([gap.ravel() for gap in gaps])
    return DrawQuality(
        cdf_mean=float(together.mean()),
        cdf_p99=float(np.quantile(together, 0.99)),
        equal_ids=float((flat == found).mean()),
        differing_images=len(differing),
        explained=explained,
    )


def _cumulative(
    logits: Logits, images: int, sampling: ResolvedSampling
) -> list[npt.NDArray[np.float64]]:
    """(2B, h, w, V_k) logits -> K arrays (B, N, V_k): the cumulative distribution of each draw."""
    result = []
    for k, part in enumerate(logits):
        size = part.shape[-1]
        guided = guide(part.reshape(len(part), -1, size), images, sampling.guidance[k])
        probability = probabilities(
            guided.reshape(-1, size),
            temperature=sampling.temperature[k],
            top_k=sampling.top_k[k],
            top_p=sampling.top_p[k],
        )
        cumulative = np.cumsum(probability, axis=-1)
        result.append((cumulative / cumulative[:, -1:]).reshape(images, -1, size))
    return result
