"""The decoding loop, the only one in m2kit: positions outside, sub-tokens inside.

Training draws its samples and export checks parity through it, on other backends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.errors import BackendError
from m2kit.runtime.backend import Steps


class Drawn(NamedTuple):
    """One finished position.

    Attributes:
        position: 0..N-1.
        tokens: (B, h, w, K) int64, a view that fills up; positions not yet drawn are 0.
    """

    position: int
    tokens: npt.NDArray[np.int64]


class TokenSource(Protocol):
    """Where the ids of a position come from: a sampler, or known tokens."""

    def draw(self, position: int, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(R, V_k) logits of sub-token k -> (B) ids."""


class KnownTokens:
    """A token source that forces given tokens and keeps the logits it is shown.

    Attributes:
        logits: K arrays (B, N, V_k) float32, filled as the loop runs.
    """

    def __init__(self, tokens: npt.NDArray[np.int64], spec: TransformerSpec) -> None:
        """Force tokens (B, h, w, K) on as many rows."""
        shape = (len(tokens), spec.positions)
        self._tokens = tokens.reshape(*shape, spec.sub_tokens)
        self.logits = [np.empty((*shape, size), np.float32) for size in spec.vocabularies]

    def draw(self, position: int, k: int, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Keep the logits, return the known ids."""
        self.logits[k][:, position] = logits
        return self._tokens[:, position, k]


def not_finite(graph: str, where: str = "") -> BackendError:
    """The error of a graph that computed NaN or Inf, from which anything could be drawn."""
    return BackendError(
        f"{graph} computed NaN or Inf{where}: this engine's weights are damaged, or too large for "
        "its precision; `m2kit verify` compares it with PyTorch"
    )


def generate_positions(
    steps: Steps,
    spec: TransformerSpec,
    row_classes: npt.NDArray[np.int64],
    images: int,
    source: TokenSource,
    *,
    finite: bool = True,
) -> Iterator[Drawn]:
    """Decode a batch, one position per iteration.

    Args:
        steps: The step graphs, bound for R rows.
        spec: The architecture.
        row_classes: (R) int64 class of every row: B conditional rows, then, with guidance, B rows
            of the unconditional class.
        images: B.
        source: Where ids come from.
        finite: Whether logits that are NaN or Inf are an error.

    Yields:
        Each position when all its sub-tokens are drawn.

    Raises:
        BackendError: A step computed NaN or Inf.
    """
    inter, intra = steps.inter, steps.intra
    repeats = len(row_classes) // images
    tokens = np.zeros((images, spec.positions, spec.sub_tokens), np.int64)
    grid = tokens.reshape(images, *spec.grid, spec.sub_tokens)
    logits = [intra.outputs[contract.logits(k)] for k in range(spec.sub_tokens)]
    class_id, token = inter.inputs[contract.CLASS_ID], inter.inputs[contract.TOKEN]
    sub_token = intra.inputs[contract.SUB_TOKEN]
    inter.reset()  # first: it refuses, before anything is written, where another decoding has begun
    class_id[:] = row_classes
    token[:] = 0  # not used at position 0, but must be a valid id
    rows_of_images = [slice(i * images, (i + 1) * images) for i in range(repeats)]
    for position in range(spec.positions):
        inter.run(position)
        inter.commit(position)
        intra.reset()
        sub_token[:] = 0
        for k, sub_logits in enumerate(logits):
            intra.run(k)
            if k + 1 < len(logits):  # nobody reads the last one's keys and values
                intra.commit(k)
            if finite and not np.isfinite(sub_logits).all():
                raise not_finite(_culprit(inter.outputs), f" at position {position}")
            ids = source.draw(position, k, sub_logits)
            tokens[:, position, k] = ids
            for rows in rows_of_images:  # both halves are fed the same token
                sub_token[rows] = ids
                token[rows, k] = ids
        yield Drawn(position, grid)


def _culprit(outputs: Mapping[str, npt.NDArray[Any]]) -> str:
    """The step graph that was the first to compute what is not finite, by the inter step's outputs;
    its hidden state may have stayed on a GPU."""
    if contract.HIDDEN not in outputs:
        return f"{contract.INTER_STEP} or {contract.INTRA_STEP}"
    finite = np.isfinite(outputs[contract.HIDDEN]).all()
    return contract.INTRA_STEP if finite else contract.INTER_STEP
