"""What a backend must offer. The decoding loop, guidance and sampling know only these protocols.

Arrays in `inputs` and `outputs` are bound once: the caller writes inputs in place before a run and
reads outputs after it. The KV cache belongs to the step, never to the decoding loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.host import host_name
from m2kit.records import JsonObject

CPU, CUDA = "cpu", "cuda"  # of --provider
IMAGES_AT_ONCE = 16  # where neither user nor backend says
POSITION_INPUTS = {
    contract.INTER_STEP: contract.POSITION,
    contract.INTRA_STEP: contract.SUB_POSITION,
}
CLOSED = "the engine was closed; open it again with m2kit.open_engine"
Buffers = dict[str, npt.NDArray[Any]]


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


@dataclass
class Steps:
    """The two step graphs for one number of rows; the inter step's hidden output feeds the intra
    step without passing through the caller.

    Attributes:
        inter: The step over positions.
        intra: The step over the sub-tokens of one position.
        narrow: Gives the steps of some of the rows, with what the inter step has committed before a
            position; these are not used any more. None where that cannot be.
    """

    inter: Step
    intra: Step
    narrow: Callable[[npt.NDArray[np.int64], int], Steps] | None = None


class WatchedStep:
    """A step that is run by another function, which runs it and notes what it wants to know."""

    def __init__(self, step: Step, run: Callable[[int], None]) -> None:
        """Run `step` by `run`."""
        self.inputs, self.outputs = step.inputs, step.outputs
        self.reset, self.run, self.commit = step.reset, run, step.commit


def step_buffers(spec: TransformerSpec, graph: str, rows: int) -> tuple[Buffers, Buffers]:
    """Zeroed host arrays for what a step's caller writes and reads: its inputs without position
    and cache, and its outputs without the cache's new rows."""
    io = contract.step_io(spec, graph)
    hidden = {POSITION_INPUTS[graph], contract.PRESENT}
    inputs, outputs = (
        [t for t in part if t.name not in hidden and not contract.is_past(t.name)]
        for part in (io.inputs, io.outputs)
    )
    return zeros(inputs, rows, "float32"), zeros(outputs, rows, "float32")


def zeros(tensors: Iterable[contract.TensorSpec], rows: int, compute: str) -> Buffers:
    """Name -> zeroed host array, of a step's inputs or outputs."""
    return {t.name: np.zeros(t.fixed_shape({"R": rows}), t.numpy_dtype(compute)) for t in tensors}


@dataclass(frozen=True, slots=True)
class Opening:
    """How a folder is opened; what is None is the backend's own choice.

    Attributes:
        provider: "cpu" or "cuda".
        threads: Threads inside an operator.
        lowering: In which the step graphs are run.
    """

    provider: str | None = None
    threads: int | None = None
    lowering: str | None = None

    @property
    def label(self) -> str:
        """What is not the usual of it, in words: "fused", "cuda"; may be empty."""
        lowering = "" if self.lowering in (None, contract.PORTABLE) else "fused"
        provider = "" if self.provider in (None, CPU) else self.provider
        return ", ".join(part for part in (lowering, provider) if part)


class Backend(Protocol):
    """One opened model. What inherits it has the defaults of a backend on the host's processor: any
    number of images and rows, any image size of the model, by threads that are not counted."""

    @property
    def largest_rows(self) -> int | None:
        """Rows that the steps take at once; None is any number."""
        return None

    @property
    def image_sizes(self) -> tuple[tuple[int, ...], ...] | None:
        """Sizes in pixels, such as (height, width), of the images it takes; None is any the model
        takes."""
        return None

    @property
    def threads(self) -> int | None:
        """Threads of the host that compute; None where it does not, or they are not counted."""
        return None

    @property
    def device(self) -> str:
        """What it runs on, in words: where two differ, so may results."""
        return host_name()

    def images_at_once(self, size: tuple[int, ...]) -> int:
        """Images of a size in pixels that encoder, quantizer and decoder take at once; by default a
        batch that keeps results in memory."""
        return IMAGES_AT_ONCE

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, quantizer or decoder on named inputs; returns its named outputs."""

    def open_steps(self, rows: int) -> Steps:
        """Allocate and bind the step graphs for `rows` rows (R)."""

    def active(self) -> JsonObject:
        """What runs and how, for people: versions, device, what is switched on."""

    def close(self) -> None:
        """Release what the backend holds; it is not used afterwards."""
