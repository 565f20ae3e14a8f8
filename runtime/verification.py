"""Compare an opened model with a reference: what PyTorch computed from the same checkpoint.

The reference travels with every bundle and engine (reference.npz), so a device without torch can
repeat the comparison. It is made once, at export: images and their latents; tokens of a guided,
greedy trajectory that this very loop decoded through the cached steps; and what PyTorch,
teacher-forced with those tokens in one pass, gives as logits and as image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.errors import FolderError, ParityError
from m2kit.folders import DamagedArchive, read_npz
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampling, guide
from m2kit.tolerances import FLOAT32_TOLERANCES, difference

Reference = Mapping[str, npt.NDArray[Any]]

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


def greedy_trajectory(engine: Engine, reference: Reference) -> npt.NDArray[np.int64]:
    """Tokens (B, h, w, K) of the reference's classes, guided and greedy."""
    sampling = Sampling(guidance=tuple(reference[GUIDANCE].tolist()), greedy=True)
    return engine.sample(reference[CLASS_IDS], sampling)


def compare(engine: Engine, reference: Reference) -> dict[str, Any]:
    """Run everything the reference knows about and report the differences.

    Returns:
        {"passed", "tolerances", "checks": name -> {"difference" or "mismatches", "passed"}};
        differences as `tolerances.difference` measures them.
    """
    checks = _tokenizer_checks(engine, reference)
    if engine.spec.transformer is not None:
        checks |= _transformer_checks(engine, reference)
    return {
        "precision": "float32 against float32",
        "tolerances": FLOAT32_TOLERANCES,
        "checks": checks,
        "passed": all(check["passed"] for check in checks.values()),
    }


def require_parity(report: Mapping[str, Any], what: str) -> None:
    """Raise ParityError, naming every failed check, unless the report passed."""
    failed = [
        f"{name} ({_describe(check)})"
        for name, check in report["checks"].items()
        if not check["passed"]
    ]
    if failed:
        raise ParityError(
            f"{what} does not agree with PyTorch: {'; '.join(failed)}; "
            "please report this with the output of `m2kit describe`"
        )


def _describe(check: Mapping[str, Any]) -> str:
    if "mismatches" in check:
        return f"{check['mismatches']} of {check['compared']} ids differ"
    return f"difference {check['difference']:.2g}, allowed {check['allowed']:.2g}"


def _close(kind: str, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> dict[str, Any]:
    value, allowed = difference(found, expected), FLOAT32_TOLERANCES[kind]
    return {"difference": value, "allowed": allowed, "passed": bool(value <= allowed)}


def _equal(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> dict[str, Any]:
    mismatches = int((found != expected).sum())
    return {"mismatches": mismatches, "compared": int(expected.size), "passed": mismatches == 0}


def _tokenizer_checks(engine: Engine, reference: Reference) -> dict[str, dict[str, Any]]:
    lfq = engine.backend.run(contract.LFQ, {contract.LATENT: reference[LATENTS]})
    return {
        "encoder": _close("latent", engine.latents(reference[IMAGES]), reference[LATENTS]),
        "lfq codes": _equal(lfq[contract.CODES], reference[CODES]),
        "lfq tokens": _equal(lfq[contract.TOKENS], reference[CODE_TOKENS]),
        "decoder": _close("image", engine.decode(reference[TOKENS]), reference[DECODED]),
    }


def _transformer_checks(engine: Engine, reference: Reference) -> dict[str, dict[str, Any]]:
    spec = engine.spec.transformer
    assert spec is not None
    tokens, classes = reference[TOKENS], reference[CLASS_IDS]
    images = len(classes)
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    scored = engine.score(rows, np.concatenate([tokens, tokens]))
    checks = {
        f"logits of sub-token {k}": _close("logits", found, reference[logits_name(k)])
        for k, found in enumerate(scored)
    }
    guided = [
        guide(reference[logits_name(k)], images, scale).reshape(images, spec.positions, -1)
        for k, scale in enumerate(reference[GUIDANCE].tolist())
    ]
    ties = [_tie(part, scale) for part, scale in zip(guided, reference[GUIDANCE], strict=True)]
    flat = tokens.reshape(images, spec.positions, -1)
    checks["arg max at every position"] = _likeliest(guided, ties, flat)
    drawn = greedy_trajectory(engine, reference).reshape(flat.shape)
    checks["greedy trajectory"] = _same_path(guided, ties, flat, drawn)
    return checks


def _tie(guided: npt.NDArray[Any], scale: float) -> float:
    """How close two guided logits are when logits within tolerance may swap their order."""
    largest = max(1.0, float(np.abs(guided).max()))
    return 2 * (abs(1 - scale) + scale) * FLOAT32_TOLERANCES["logits"] * largest


def _likeliest(
    guided: list[npt.NDArray[Any]], ties: list[float], tokens: npt.NDArray[Any]
) -> dict[str, Any]:
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


def _same_path(
    guided: list[npt.NDArray[Any]],
    ties: list[float],
    expected: npt.NDArray[Any],
    found: npt.NDArray[Any],
) -> dict[str, Any]:
    """Whether two trajectories (B, N, K) are equal, or part at ids whose logits are tied."""
    passed = True
    for image in range(len(expected)):
        differing = np.argwhere(expected[image] != found[image])  # in the order of drawing
        if len(differing):
            position, k = differing[0]
            row = guided[k][image, position]
            gap = abs(row[expected[image, position, k]] - row[found[image, position, k]])
            passed = passed and bool(gap <= ties[k])
    mismatches = int((expected != found).sum())
    return {"mismatches": mismatches, "compared": int(expected.size), "passed": passed}
