"""Compare an opened model with a reference: what PyTorch computed from the same checkpoint.

The reference travels with every bundle and engine (reference.npz), so a device without torch can
repeat the comparison. It is made once, at export: images and their latents; tokens of a guided,
greedy trajectory that this very loop decoded through the cached steps; and what PyTorch,
teacher-forced with those tokens in one pass, gives as logits and as image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.errors import FolderError, ParityError
from m2kit.folders import DamagedArchive, read_npz
from m2kit.images import psnr
from m2kit.progress import Advance
from m2kit.runtime.engine import Engine
from m2kit.runtime.quality import score_quality
from m2kit.runtime.sampling import Sampling, guide
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
Reference = Mapping[str, Array]
Check = dict[str, Any]  # what was found, what was allowed, and "passed"

# Arrays of a reference; a tokenizer alone has the first two lines. CODES and CODE_TOKENS are what
# LFQ makes of LATENTS, and DECODED is the image of TOKENS.
IMAGES, LATENTS, CODES, CODE_TOKENS = "images", "latents", "codes", "code_tokens"
TOKENS, DECODED = "tokens", "decoded"
CLASS_IDS, GUIDANCE = "class_ids", "guidance"


def logits_name(k: int) -> str:
    """(2B, h, w, V_k) logits of sub-token k: conditional rows, then unconditional ones."""
    return f"logits_{k}"


def read_reference(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a reference.npz (never unpickled).

    Raises:
        FolderError: It cannot be read.
    """
    try:
        return read_npz(path)
    except (DamagedArchive, OSError) as error:
        raise FolderError(f"{path} is not a readable reference; export the model again") from error


def compare(
    engine: Engine,
    reference: Reference,
    advance: Advance = lambda count: None,
    *,
    precision: str = "float32",
    tokenizer: bool = True,
) -> dict[str, Any]:
    """Run everything the reference knows about and report the differences.

    Args:
        engine: The opened model.
        reference: What PyTorch computed.
        advance: Called after each position of the trajectory.
        precision: float32, float16, int8 or int4: the engine's, which decides what counts as the
            same.
        tokenizer: Compare encoder, lfq and decoder too.

    Returns:
        {"passed", "precision", "tolerances", "checks": name -> what was found and "passed"};
        differences as `tolerances.difference` measures them. For integer weights the checks that
        are their quality gate also have "gate", and there is "quality": what the images become.
    """
    lossy = precision in QUANTIZED_TOLERANCES
    steps = _Quantized(precision) if lossy else _JUDGES[precision]()
    checks: dict[str, Check] = {}
    if tokenizer:
        judge = _Float32() if lossy else steps
        checks |= _tokenizer_checks(engine, reference, judge)
    report: dict[str, Any] = {"precision": f"{precision} against float32"}
    if engine.spec.transformer is not None:
        own, chosen = _transformer_checks(engine, reference, steps, advance)
        checks |= own
        if lossy:
            checks["image of the likeliest ids"], report["quality"] = _images(
                engine, reference, steps, chosen
            )
            for name in ("image of the likeliest ids", *own):
                checks[name]["gate"] = True
    return report | {
        "tolerances": steps.tolerances,
        "checks": checks,
        "passed": all(check["passed"] for check in checks.values()),
    }


def _images(
    engine: Engine, reference: Reference, judge: _Float32 | _Half, chosen: Array
) -> tuple[Check, dict[str, Any]]:
    """What the engine's own choices look like: judged at the reference's tokens, where every choice
    has the same context; told, but not judged, for the path it takes by itself."""
    spec = engine.transformer
    grid = (len(chosen), *spec.grid, len(spec.bits))
    forced = engine.decode(chosen.reshape(grid))
    sampling = Sampling(greedy=True, guidance=tuple(reference[GUIDANCE].tolist()))
    drawn = engine.sample(reference[CLASS_IDS], sampling)
    differs = (drawn != reference[TOKENS]).any(axis=-1).reshape(len(drawn), -1)
    first = [int(row.argmax()) if row.any() else None for row in differs]
    quality = {
        "psnr_db": round(psnr(reference[DECODED], forced), 2),
        "first_divergence": first,
        "psnr_greedy_db": round(psnr(reference[DECODED], engine.decode(drawn)), 2),
    }
    return judge.image(forced, reference[DECODED]), quality


_GATE_CURE = (
    "its integer weights change the model too much: build with int8 for int4, with fp32 for int8, "
    "or with --accept-quality to keep it all the same"
)


def require_parity(
    report: Mapping[str, Any],
    what: str,
    *,
    accept_quality: bool = False,
) -> None:
    """Raise ParityError, naming every failed check.

    Args:
        report: What `compare` returned.
        what: Was compared, for the message.
        accept_quality: Leave out the checks of the quality gate; all others hold.
    """
    failed = {
        name: check
        for name, check in report["checks"].items()
        if not check["passed"] and not (accept_quality and "gate" in check)
    }
    if failed:
        told = "; ".join(f"{name} ({_describe(check)})" for name, check in failed.items())
        only_gate = all("gate" in check for check in failed.values())
        cure = _GATE_CURE if only_gate else "please report this with the output of `m2kit describe`"
        raise ParityError(f"{what} does not agree with PyTorch: {told}; {cure}")


def _describe(check: Mapping[str, Any]) -> str:
    if "mismatches" in check:
        return f"{check['mismatches']} of {check['compared']} ids differ"
    if "found" in check:
        pairs = [(name, value, check["allowed"][name]) for name, value in check["found"].items()]
        return ", ".join(f"{name} {value:.2g}, allowed {most:.2g}" for name, value, most in pairs)
    return f"difference {check['difference']:.2g}, allowed {check['allowed']:.2g}"


def _close(kind: str, found: Array, expected: Array) -> Check:
    value, allowed = difference(found, expected), FLOAT32_TOLERANCES[kind]
    return {"difference": value, "allowed": allowed, "passed": bool(value <= allowed)}


def _equal(found: Array, expected: Array) -> Check:
    mismatches = int((found != expected).sum())
    return {"mismatches": mismatches, "compared": int(expected.size), "passed": mismatches == 0}


def _at_most(found: Mapping[str, float], allowed: Mapping[str, float]) -> Check:
    """NaN is over every limit."""
    limits = {name: allowed[name] for name in found}
    passed = all(bool(value <= limits[name]) for name, value in found.items())
    return {"found": dict(found), "allowed": limits, "passed": passed}


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
            "greedy trajectory": _likeliest(expected, ties, chosen)
            | {"mismatches": int((chosen != tokens).sum())},
        }


class _Half:
    """What counts as the same where one side computes in half precision."""

    tolerances = HALF_TOLERANCES

    def latents(self, found: Array, expected: Array) -> Check:
        differing = (found > 0) != (expected > 0)
        at_differing = float(np.abs(expected[differing]).max(initial=0.0))
        measured = {
            NOT_FINITE: float((~np.isfinite(found)).sum()),
            DIFFERING_BITS: float(differing.mean()),
            DIFFERING_LATENT: at_differing / max(1.0, float(np.abs(expected).max())),
        }
        few = max(self.tolerances[DIFFERING_BITS], 2 / differing.size)
        return _at_most(measured, self.tolerances | {DIFFERING_BITS: few})

    def image(self, found: Array, expected: Array) -> Check:
        error = float(np.sqrt(((found.astype(np.float64) - expected) ** 2).mean()))
        return _at_most({RMS_ERROR: error}, self.tolerances)

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
        return _at_most({KL: kl, ARG_MAX: float(missed.mean())}, limits)


class _Quantized(_Half):
    """What counts as near enough for steps with integer weights: the quality gate."""

    def __init__(self, precision: str) -> None:
        self.tolerances = QUANTIZED_TOLERANCES[precision]


_JUDGES: dict[str, type[_Float32 | _Half]] = {"float32": _Float32, "float16": _Half}


def _in_parts(function: Callable[..., Any], largest: int | None, *arrays: Array) -> list[Any]:
    """The function's results on as many rows at once as the engine takes."""
    step = largest or len(arrays[0])
    starts = range(0, len(arrays[0]), step)
    return [function(*(array[start : start + step] for array in arrays)) for start in starts]


def _tokenizer_checks(
    engine: Engine, reference: Reference, judge: _Float32 | _Half
) -> dict[str, Check]:
    size = reference[IMAGES].shape[2:]
    sizes = engine.backend.image_sizes or (size,)
    checks = _finite_checks(engine, [other for other in sizes if other != size])
    if size not in sizes:
        return checks

    def lfq(latents: Array) -> dict[str, Array]:
        return engine.backend.run(contract.LFQ, {contract.LATENT: latents})

    most = engine.backend.largest_batch
    latents = np.concatenate(_in_parts(engine.latents, most, reference[IMAGES]))
    parts = _in_parts(lfq, most, reference[LATENTS])
    codes, tokens = (
        np.concatenate([part[name] for part in parts]) for name in (contract.CODES, contract.TOKENS)
    )
    decoded = np.concatenate(_in_parts(engine.decode, most, reference[TOKENS]))
    return checks | {
        "encoder": judge.latents(latents, reference[LATENTS]),
        "lfq codes": _equal(codes, reference[CODES]),
        "lfq tokens": _equal(tokens, reference[CODE_TOKENS]),
        "decoder": judge.image(decoded, reference[DECODED]),
    }


def _finite_checks(engine: Engine, sizes: list[tuple[int, int]]) -> dict[str, Check]:
    """All that can be said of image sizes that the reference does not have."""
    checks = {}
    for height, width in sizes:
        image = np.zeros((1, 3, height, width), np.float32)
        latents, decoded = engine.latents(image), engine.decode(engine.encode(image))
        bad = sum(int((~np.isfinite(array)).sum()) for array in (latents, decoded))
        checks[f"tokenizer at {height} x {width}"] = _at_most({NOT_FINITE: bad}, HALF_TOLERANCES)
    return checks


def _transformer_checks(
    engine: Engine, reference: Reference, judge: _Float32 | _Half, advance: Advance
) -> tuple[dict[str, Check], Array]:
    """The checks, and the engine's likeliest ids (B, N, K) at the reference's tokens."""
    spec = engine.spec.transformer
    assert spec is not None
    tokens, classes = reference[TOKENS], reference[CLASS_IDS]
    images, scales = len(classes), reference[GUIDANCE].tolist()
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    parts = _in_parts(
        lambda ids, forced: engine.score(ids, forced, advance),
        engine.backend.largest_rows,
        rows,
        np.concatenate([tokens, tokens]),
    )
    scored = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    checks = {
        f"logits of sub-token {k}": judge.logits(found, reference[logits_name(k)])
        for k, found in enumerate(scored)
    }
    guided, own = (
        [
            guide(part, images, scale).reshape(images, spec.positions, -1)
            for part, scale in zip(logits, scales, strict=True)
        ]
        for logits in ([reference[logits_name(k)] for k in range(len(scales))], scored)
    )
    flat = tokens.reshape(images, spec.positions, -1)
    chosen = np.stack([part.argmax(axis=-1) for part in own], axis=-1)
    return checks | judge.guided(own, guided, scales, flat), chosen


def _tie(guided: Array, scale: float) -> float:
    """How close two guided logits are when logits within tolerance may swap their order."""
    largest = max(1.0, float(np.abs(guided).max()))
    return 2 * (abs(1 - scale) + scale) * FLOAT32_TOLERANCES["logits"] * largest


def _likeliest(guided: list[Array], ties: list[float], tokens: Array) -> Check:
    """Whether each of the tokens (B, N, K) is the arg max of the guided logits, or tied with it."""
    gaps = [
        part.max(axis=-1) - np.take_along_axis(part, tokens[..., k, None], axis=-1)[..., 0]
        for k, part in enumerate(guided)
    ]
    return {
        "mismatches": int(sum((gap > 0).sum() for gap in gaps)),
        "compared": int(tokens.size),
        "passed": all(bool((gap <= tie).all()) for gap, tie in zip(gaps, ties, strict=True)),
    }
