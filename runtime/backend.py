"""What a backend must offer. The decoding loop, guidance and sampling know only these protocols.

Arrays in `inputs` and `outputs` are bound once: the caller writes inputs in place before a run and
reads outputs after it. The KV cache belongs to the step, never to the decoding loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt


class Step(Protocol):
    """One step graph with its buffers and its KV cache."""

    @property
    def inputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """The named inputs the caller writes (contract.py), without position and cache."""

    @property
    def outputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """The named outputs the caller may read; overwritten by the next run."""

    def reset(self) -> None:
        """Begin a new sequence: position 0 is next; the caller writes inputs after it."""

    def run(self, position: int) -> None:
        """Compute one position; it sees the positions committed before it."""

    def commit(self, position: int) -> None:
        """Append what the last run computed to the cache, at `position`."""


class Steps(Protocol):
    """The two step graphs for one number of rows; the inter step's hidden output feeds the intra
    step without passing through the caller."""

    @property
    def inter(self) -> Step:
        """The step over positions."""

    @property
    def intra(self) -> Step:
        """The step over the sub-tokens of one position."""


class AnyShape:
    """The defaults of a backend: any number of images and rows, any image size of the model."""

    largest_batch: int | None = None
    largest_rows: int | None = None
    image_sizes: tuple[tuple[int, int], ...] | None = None


class Backend(Protocol):
    """One opened model.

    Attributes:
        largest_batch: Images that encoder, lfq and decoder take at once; None is any number.
        largest_rows: Rows that the steps take at once; None is any number.
        image_sizes: (height, width) of the images it takes; None is any the model takes.
    """

    largest_batch: int | None
    largest_rows: int | None
    image_sizes: tuple[tuple[int, int], ...] | None

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, lfq or decoder on named inputs; returns its named outputs."""

    def open_steps(self, rows: int) -> Steps:
        """Allocate and bind the step graphs for `rows` rows (R)."""

    def active(self) -> dict[str, Any]:
        """What runs and how, for people: versions, device, what is switched on."""

    def close(self) -> None:
        """Release what the backend holds; it is not used afterwards."""
