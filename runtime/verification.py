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
from m2kit.progress import Advance
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import guide
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


def compare(
    engine: Engine, reference: Reference, advance: Advance = lambda count: None
) -> dict[str, Any]:
    """Run everything the reference knows about and report the differences.

    Args:
        engine: The opened model.
        reference: What PyTorch computed.
        advance: Called after each position of the trajectory.

    Returns:
        {"passed", "tolerances", "checks": name -> {"difference" or "mismatches", "passed"}};
        differences as `tolerances.difference` measures them.
    """
    checks = _tokenizer_checks(engine, reference)
    if engine.spec.transformer is not None:
        checks |= _transformer_checks(engine, reference, advance)
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


def _transformer_checks(
    engine: Engine, reference: Reference, advance: Advance
) -> dict[str, dict[str, Any]]:
    spec = engine.spec.transformer
    assert spec is not None
    tokens, classes = reference[TOKENS], reference[CLASS_IDS]
    images, scales = len(classes), reference[GUIDANCE].tolist()
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    scored = engine.score(rows, np.concatenate([tokens, tokens]), advance)
    checks = {
        f"logits of sub-token {k}": _close("logits", found, reference[logits_name(k)])
        for k, found in enumerate(scored)
    }
    guided, own = (
        [
            guide(part, images, scale).reshape(images, spec.positions, -1)
            for part, scale in zip(logits, scales, strict=True)
        ]
        for logits in ([reference[logits_name(k)] for k in range(len(scales))], scored)
    )
    ties = [_tie(part, scale) for part, scale in zip(guided, scales, strict=True)]
    flat = tokens.reshape(images, spec.positions, -1)
    checks["arg max at every position"] = _likeliest(guided, ties, flat)
    # The engine was fed these tokens: if its own arg max is the next one at every position, this
    # is the path it takes by itself.
    chosen = np.stack([part.argmax(axis=-1) for part in own], axis=-1)
    checks["greedy trajectory"] = _likeliest(guided, ties, chosen) | {
        "mismatches": int((chosen != flat).sum())
    }
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
