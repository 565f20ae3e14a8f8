"""A backend without a model, for tests of whatever stands on the protocol.

Its logits are a fixed pseudo-random function of everything a real model would depend on: the class
of the row, the tokens of all committed positions, the sub-tokens of this position. So a loop that
forgets a commit, feeds the wrong token or mixes up rows draws other ids; a call out of order is an
error at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.records import JsonObject
from m2kit.runtime.backend import Backend, Steps, step_buffers


class FakeBackend(Backend):
    """Numpy only: block means for an encoder, a hash for a transformer."""

    name = "fake"

    def __init__(self, spec: ModelSpec) -> None:
        """Pretend to be a model of this spec."""
        self._spec = spec
        self.closed = False

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Encoder: signs spread over the channels; decoder: the codes' mean, enlarged."""
        spec = self._spec
        tokenizer, channels = spec.tokenizer, spec.tokenizer.code_channels
        if graph == contract.ENCODER:
            mean = feeds[contract.IMAGE].mean(axis=1, keepdims=True)  # (B, 1, *size)
            for axis, stride in enumerate(tokenizer.strides, start=2):
                split = (*mean.shape[:axis], -1, stride, *mean.shape[axis + 1 :])
                mean = mean.reshape(split).mean(axis=axis + 1)
            thresholds = np.linspace(-0.9, 0.9, channels)
            latent = mean - thresholds.reshape(1, -1, *[1] * len(tokenizer.axes))
            return {contract.LATENT: latent.astype(np.float32)}
        if graph == tokenizer.quantizer:
            tokens = tokenizer.tokens_from_codes(feeds[contract.LATENT], spec.vocabularies)
            codes = tokenizer.codes_from_tokens(tokens, spec.vocabularies)
            return {contract.CODES: codes, contract.TOKENS: tokens}
        image = feeds[contract.CODES].mean(axis=1, keepdims=True).repeat(3, axis=1)
        for axis, stride in enumerate(tokenizer.strides, start=2):
            image = image.repeat(stride, axis=axis)
        return {contract.IMAGE: image.astype(np.float32)}

    def open_steps(self, rows: int) -> FakeSteps:
        """Step doubles for `rows` rows."""
        assert self._spec.transformer is not None
        return FakeSteps(self._spec.transformer, rows)

    def active(self) -> JsonObject:
        """Nothing runs here."""
        return {"backend": self.name}

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class FakeSteps(Steps):
    """The inter and intra doubles; the hidden output of one is the input of the other."""

    def __init__(self, spec: TransformerSpec, rows: int) -> None:
        """Doubles for `rows` rows."""
        hidden = np.zeros((rows, 1), np.uint64)
        inputs, _ = step_buffers(spec, contract.INTER_STEP, rows)
        self.inter = FakeStep(inputs, {contract.HIDDEN: hidden}, spec.positions)
        inputs, logits = step_buffers(spec, contract.INTRA_STEP, rows)
        self.intra = FakeStep({**inputs, contract.HIDDEN: hidden}, logits, spec.sub_tokens)


class FakeStep:
    """A step whose state is one 64-bit hash per row of all it was fed and committed."""

    def __init__(
        self,
        inputs: dict[str, npt.NDArray[Any]],
        outputs: dict[str, npt.NDArray[Any]],
        capacity: int,
    ) -> None:
        """Take the shared buffers."""
        self.inputs, self.outputs = inputs, outputs
        self._capacity = capacity
        self._committed = 0
        self._state = np.zeros(len(next(iter(inputs.values()))), np.uint64)
        self._next: npt.NDArray[np.uint64] | None = None

    def reset(self) -> None:
        """Begin a new sequence."""
        self._committed = 0
        self._state = np.zeros_like(self._state)
        self._next = None

    def run(self, position: int) -> None:
        """Hash the state with the inputs into the outputs; positions must come in order."""
        if position != self._committed or position >= self._capacity:
            raise RuntimeError(
                f"run({position}) out of order: {self._committed} positions are committed "
                f"of {self._capacity}"
            )
        state = self._state
        for name, array in self.inputs.items():
            used = name in (contract.HIDDEN, contract.CLASS_ID) if position == 0 else True
            for column in array.reshape(len(array), -1).T:
                state = _mix(state, column if used else np.zeros_like(column))
        self._next = state
        for name, array in self.outputs.items():
            if name == contract.HIDDEN:
                array[:, 0] = state
            else:
                ids = np.arange(array.shape[1], dtype=np.uint64)
                mixed = _mix(state[:, None], ids[None])
                array[:] = (mixed >> np.uint64(11)) * np.float64(2.0**-53) * 8 - 4

    def commit(self, position: int) -> None:
        """Keep what the last run computed."""
        if self._next is None or position != self._committed:
            raise RuntimeError(f"commit({position}) without run({position})")
        self._state, self._next = self._next, None
        self._committed += 1


def _mix(state: npt.NDArray[np.uint64], value: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """One round of splitmix64 over state and value."""
    with np.errstate(over="ignore"):
        z = (state ^ value.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
