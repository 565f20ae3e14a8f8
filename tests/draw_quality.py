"""How far the draws of a lossy engine are from the exact one's, and whether the difference of their
distributions explains every image that differs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.runtime.engine import Engine
from m2kit.runtime.quality import Logits
from m2kit.runtime.sampling import draw, guide, probabilities, uniforms
from m2kit.sampling import ResolvedSampling, Sampling


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
