"""Compare one opened model with the reference: what PyTorch computed from the same checkpoint.

What counts as the same depends on the precision; the limits are in m2kit.tolerances.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from m2kit.parity_report import (
    BEYOND_TIES,
    DIFFERENCE,
    MISMATCHES,
    Check,
    ParityReport,
    Quality,
    measured,
)
from m2kit.precision import Precision
from m2kit.progress import Advance
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import psnr
from m2kit.runtime.quality import score_quality
from m2kit.runtime.reference import Reference, Trajectory
from m2kit.runtime.sampling import guide
from m2kit.sampling import Sampling
from m2kit.tolerances import (
    ARG_MAX,
    DIFFERING_BITS,
    DIFFERING_LATENT,
    FLOAT32_TOLERANCES,
    HALF_TOLERANCES,
    KL,
    NEAR_TIE,
    NOT_FINITE,
    QUANTIZED_TOLERANCES,
    RMS_ERROR,
    difference,
)

Array = npt.NDArray[Any]
Judge: TypeAlias = "_Float32 | _Half"
_LIKELIEST = "image of the likeliest ids"


def compare(
    engine: Engine,
    reference: Reference,
    advance: Advance = lambda count: None,
    *,
    precision: Precision = Precision.FLOAT32,
    tokenizer: bool = True,
) -> ParityReport:
    """Run everything the reference knows about, encoder, quantizer and decoder only with
    `tokenizer`, and report the differences; the engine's precision decides what counts as the same,
    and `advance` is called after each position of the trajectory.

    Returns:
        Differences as `tolerances.difference` measures them. For integer weights the checks of
        their quality gate are marked, and there is `quality`: what the images become.
    """
    steps = _judge_of(precision)
    checks: dict[str, Check] = {}
    if tokenizer:
        checks |= _tokenizer_checks(engine, reference, _Float32() if precision.quantized else steps)
    quality = None
    if reference.trajectory is not None:
        own, chosen = _transformer_checks(engine, reference, reference.trajectory, steps, advance)
        if precision.quantized:
            image, quality = _images(engine, reference, reference.trajectory, steps, chosen)
            own = {n: replace(c, gate=True) for n, c in {_LIKELIEST: image, **own}.items()}
        checks |= own
    return ParityReport(
        precision=f"{precision.value} against float32",
        checks=checks,
        tolerances=dict(steps.tolerances),
        quality=quality,
        devices=(engine.backend.device,),
    )


def _images(
    engine: Engine, reference: Reference, trajectory: Trajectory, judge: Judge, chosen: Array
) -> tuple[Check, Quality]:
    """What the engine's own choices look like: judged at the reference's tokens, where every choice
    has the same context; told, but not judged, for the path it takes by itself."""
    forced = engine.decode(chosen.reshape(reference.tokens.shape), clip=False)
    sampling = Sampling(greedy=True, guidance=trajectory.guidance.tolist())
    drawn = engine.sample(trajectory.class_ids, sampling)
    differs = (drawn != reference.tokens).any(axis=-1).reshape(len(drawn), -1)
    quality = Quality(
        psnr_db=round(psnr(reference.decoded, forced), 2),
        first_divergence=tuple(int(row.argmax()) if row.any() else None for row in differs),
        psnr_greedy_db=round(psnr(reference.decoded, engine.decode(drawn)), 2),
    )
    return judge.image(forced, reference.decoded), quality


def _close(kind: str, found: Array, expected: Array) -> Check:
    return measured(
        {DIFFERENCE: difference(found, expected)}, {DIFFERENCE: FLOAT32_TOLERANCES[kind]}
    )


def _equal(found: Array, expected: Array) -> Check:
    return measured({MISMATCHES: int((found != expected).sum())}, {MISMATCHES: 0}, expected.size)


class _Float32:
    """What counts as the same where both sides compute in float32."""

    tolerances = FLOAT32_TOLERANCES

    def latents(self, found: Array, expected: Array) -> Check:
        return _close("latent", found, expected)

    def image(self, found: Array, expected: Array) -> Check:
        return _close("image", found, expected)

    def logits(self, found: Array, expected: Array) -> Check:
        return _close("logits", found, expected)

    def guided(
        self, found: list[Array], expected: list[Array], scales: list[float], tokens: Array
    ) -> dict[str, Check]:
        """The engine was fed these tokens: if its own arg max is the next one at every position,
        this is the path it takes by itself."""
        ties = [_tie(part, scale) for part, scale in zip(expected, scales, strict=True)]
        chosen = np.stack([part.argmax(axis=-1) for part in found], axis=-1)
        return {
            "arg max at every position": _likeliest(expected, ties, tokens),
            "greedy trajectory": _likeliest(expected, ties, chosen, others=tokens),
        }


class _Half:
    """What counts as the same where one side computes in half precision; with other tolerances, as
    near enough for steps with integer weights: the quality gate."""

    def __init__(self, tolerances: dict[str, float] = HALF_TOLERANCES) -> None:
        self.tolerances = tolerances

    def latents(self, found: Array, expected: Array) -> Check:
        differing = (found > 0) != (expected > 0)
        at_differing = float(np.abs(expected[differing]).max(initial=0.0))
        values = {
            NOT_FINITE: float((~np.isfinite(found)).sum()),
            DIFFERING_BITS: float(differing.mean()),
            DIFFERING_LATENT: at_differing / max(1.0, float(np.abs(expected).max())),
        }
        few = max(self.tolerances[DIFFERING_BITS], 2 / differing.size)
        return measured(values, self.tolerances | {DIFFERING_BITS: few})

    def image(self, found: Array, expected: Array) -> Check:
        error = float(np.sqrt(((found.astype(np.float64) - expected) ** 2).mean()))
        return measured({RMS_ERROR: error}, self.tolerances)

    def logits(self, found: Array, expected: Array) -> Check:
        return self._distributions(found, expected, spread=1.0)

    def guided(
        self, found: list[Array], expected: list[Array], scales: list[float], tokens: Array
    ) -> dict[str, Check]:
        return {
            f"guided logits of sub-token {k}": self._distributions(
                own, right, spread=abs(1 - scale) + scale
            )
            for k, (own, right, scale) in enumerate(zip(found, expected, scales, strict=True))
        }

    def _distributions(self, found: Array, expected: Array, spread: float) -> Check:
        """KL divergence and arg max of logits whose error guidance has enlarged by `spread`."""
        best = expected.max(axis=-1)
        chosen = np.take_along_axis(expected, found.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        missed = best - chosen > self.tolerances[NEAR_TIE] * spread
        (kl,) = score_quality([expected], [found]).kl
        limits = {
            KL: self.tolerances[KL] * spread**2,
            ARG_MAX: max(self.tolerances[ARG_MAX], 2 / missed.size),
        }
        return measured({KL: kl, ARG_MAX: float(missed.mean())}, limits)


def _judge_of(precision: Precision) -> Judge:
    if precision is Precision.FLOAT32:
        return _Float32()
    return _Half(QUANTIZED_TOLERANCES[precision.value] if precision.quantized else HALF_TOLERANCES)


def _tokenizer_checks(engine: Engine, reference: Reference, judge: Judge) -> dict[str, Check]:
    size = tuple(map(int, reference.images.shape[2:]))
    sizes = engine.backend.image_sizes or (size,)
    checks = {
        f"tokenizer at {' x '.join(map(str, other))}": _finite(engine, other)
        for other in sizes
        if other != size
    }
    if size not in sizes:
        return checks
    latents = engine.latents(reference.images)
    codes, tokens = engine.quantize(reference.latents)
    quantizer = engine.spec.tokenizer.quantizer
    return checks | {
        "encoder": judge.latents(latents, reference.latents),
        f"{quantizer} codes": _equal(codes, reference.codes),
        f"{quantizer} tokens": _equal(tokens, reference.code_tokens),
        "decoder": judge.image(engine.decode(reference.tokens, clip=False), reference.decoded),
    }


def _finite(engine: Engine, size: tuple[int, ...]) -> Check:
    """All that can be said of an image size that the reference does not have."""
    image = np.zeros((1, 3, *size), np.float32)
    latents, decoded = engine.latents(image), engine.decode(engine.encode(image), clip=False)
    bad = sum(int((~np.isfinite(array)).sum()) for array in (latents, decoded))
    return measured({NOT_FINITE: bad}, HALF_TOLERANCES)


def _transformer_checks(
    engine: Engine, reference: Reference, trajectory: Trajectory, judge: Judge, advance: Advance
) -> tuple[dict[str, Check], Array]:
    """The checks, and the engine's likeliest ids (B, N, K) at the reference's tokens."""
    spec, classes = engine.transformer, trajectory.class_ids
    tokens, images, scales = reference.tokens, len(classes), trajectory.guidance.tolist()
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    scored = engine.score(rows, np.concatenate([tokens, tokens]), advance)
    checks = {
        f"logits of sub-token {k}": judge.logits(found, expected)
        for k, (found, expected) in enumerate(zip(scored, trajectory.logits, strict=True))
    }
    guided, own = (
        [
            guide(part, images, scale).reshape(images, spec.positions, -1)
            for part, scale in zip(logits, scales, strict=True)
        ]
        for logits in (trajectory.logits, scored)
    )
    flat = tokens.reshape(images, spec.positions, -1)
    chosen = np.stack([part.argmax(axis=-1) for part in own], axis=-1)
    return checks | judge.guided(own, guided, scales, flat), chosen


def _tie(guided: Array, scale: float) -> float:
    """How close two guided logits are when logits within tolerance may swap their order."""
    largest = max(1.0, float(np.abs(guided).max()))
    return 2 * (abs(1 - scale) + scale) * FLOAT32_TOLERANCES["logits"] * largest


def _likeliest(
    guided: list[Array], ties: list[float], tokens: Array, others: Array | None = None
) -> Check:
    """Whether each of the tokens (B, N, K) is the arg max of the guided logits, or tied with it;
    told is how many are not, or how many differ from others."""
    gaps = [
        part.max(axis=-1) - np.take_along_axis(part, tokens[..., k, None], axis=-1)[..., 0]
        for k, part in enumerate(guided)
    ]
    beyond = int(sum((~(gap <= tie)).sum() for gap, tie in zip(gaps, ties, strict=True)))
    told = sum((gap > 0).sum() for gap in gaps) if others is None else (tokens != others).sum()
    return measured({MISMATCHES: int(told), BEYOND_TIES: beyond}, {BEYOND_TIES: 0}, tokens.size)
