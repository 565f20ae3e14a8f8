"""The decoding loop, the only one in m2kit: positions outside, sub-tokens inside.

Training draws its samples and export checks parity through it, on other backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.errors import BackendError
from m2kit.runtime.backend import Steps

Stopped = Callable[[], Iterable[int]]  # images, by their place in the batch


class Drawn(NamedTuple):
    """One finished position.

    Attributes:
        position: 0..N-1.
        tokens: (B, h, w, K) int64, a view that fills up; positions not yet drawn are 0.
    """

    position: int
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """What each row of a batch computes.

    Attributes:
        classes: (R) int64 class of every row: B conditional rows, then one of the unconditional
            class for every guided image.
        images: (R) int64 the image of every row, whose tokens it is fed: 0..B-1, then the guided
            ones.
    """

    classes: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]

    @classmethod
    def of(cls, classes: npt.NDArray[np.int64], guided: Sequence[bool], unconditional: int) -> Rows:
        """Of images of such classes (B), guided or not."""
        twice = np.flatnonzero(guided)
        return cls(
            np.concatenate([classes, np.full(len(twice), unconditional)]),
            np.concatenate([np.arange(len(classes)), twice]),
        )

    def of_images(self, kept: npt.NDArray[np.int64]) -> tuple[Rows, npt.NDArray[np.int64]]:
        """The same of some of the images alone, and which rows these are."""
        rows = np.flatnonzero(np.isin(self.images, kept))
        return Rows(self.classes[rows], np.searchsorted(kept, self.images[rows])), rows


class TokenSource(Protocol):
    """Where the ids of a position come from: a sampler, or known tokens."""

    def keep(self, images: npt.NDArray[np.int64]) -> None:
        """Give ids of these of the images alone from now on, in this order."""

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

    def keep(self, images: npt.NDArray[np.int64]) -> None:
        """All are scored to the end."""

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
    rows: Rows,
    source: TokenSource,
    *,
    finite: bool = True,
    stopped: Stopped = lambda: (),
) -> Iterator[Drawn]:
    """Decode a batch, one position per iteration.

    Args:
        steps: The step graphs, bound for R rows.
        spec: The architecture.
        rows: What each of R rows computes.
        source: Where ids come from.
        finite: Whether logits that are NaN or Inf are an error.
        stopped: Asked before each position which images are to be drawn no further: their rows are
            left out where the steps can do without, their tokens stay as they are, and nothing more
            is drawn when no image is left.

    Yields:
        Each position when all its sub-tokens are drawn.

    Raises:
        BackendError: A step computed NaN or Inf.
    """
    alive = np.unique(rows.images)
    tokens = np.zeros((len(alive), spec.positions, spec.sub_tokens), np.int64)
    grid = tokens.reshape(len(alive), *spec.grid, spec.sub_tokens)
    steps.inter.reset()  # first: it refuses, before anything is written, where another decoding has
    steps.inter.inputs[contract.CLASS_ID][:] = rows.classes  # begun
    steps.inter.inputs[contract.TOKEN][:] = 0  # not used at position 0, but must be a valid id
    for position in range(spec.positions):
        gone = np.isin(alive, np.fromiter(stopped(), np.int64))
        if gone.all():
            return
        if gone.any() and steps.narrow is not None:
            kept = np.flatnonzero(~gone)
            alive, (rows, left) = alive[kept], rows.of_images(kept)
            steps = steps.narrow(left, position)
            source.keep(kept)
            steps.inter.reset()
            steps.inter.inputs[contract.CLASS_ID][:] = rows.classes
            if position:
                steps.inter.inputs[contract.TOKEN][:] = tokens[alive[rows.images], position - 1]
        tokens[alive, position] = _ids_of(steps, spec, rows, source, position, finite)
        yield Drawn(position, grid)


def _ids_of(
    steps: Steps,
    spec: TransformerSpec,
    rows: Rows,
    source: TokenSource,
    position: int,
    finite: bool,
) -> npt.NDArray[np.int64]:
    """Draw a position, which the rows are fed for the next one: (B, K)."""
    inter, intra = steps.inter, steps.intra
    token, sub_token = inter.inputs[contract.TOKEN], intra.inputs[contract.SUB_TOKEN]
    inter.run(position)
    inter.commit(position)
    intra.reset()
    sub_token[:] = 0
    drawn = []
    for k in range(spec.sub_tokens):
        intra.run(k)
        if k + 1 < spec.sub_tokens:  # nobody reads the last one's keys and values
            intra.commit(k)
        logits = intra.outputs[contract.logits(k)]
        if finite and not np.isfinite(logits).all():
            raise not_finite(_culprit(inter.outputs), f" at position {position}")
        drawn.append(source.draw(position, k, logits))
        sub_token[:] = token[:, k] = drawn[-1][rows.images]  # all rows of an image are fed the same
    return np.stack(drawn, axis=-1)


def _culprit(outputs: Mapping[str, npt.NDArray[Any]]) -> str:
    """The step graph that was the first to compute what is not finite, by the inter step's outputs;
    its hidden state may have stayed on a GPU."""
    if contract.HIDDEN not in outputs:
        return f"{contract.INTER_STEP} or {contract.INTRA_STEP}"
    finite = np.isfinite(outputs[contract.HIDDEN]).all()
    return contract.INTRA_STEP if finite else contract.INTER_STEP
