"""PyTorch as fast as eager code gets on a CPU: what benchmarks compare engines with.

Weights are stored as (in, out) or as (out, in), whichever this processor multiplies faster, the KV
cache is static and written in place, a position attends to the slots filled so far, and only the
head that is read is computed. `official=True` keeps the habits of the official sampler instead:
weights as they are, 264 slots under a mask, and an intra cache made anew at every position. Weights
are random: time does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.families.family import FAMILIES
from m2kit.records import JsonObject
from m2kit.references import resolve
from m2kit.runtime.backend import Backend, Steps, step_buffers
from m2kit.training.models.rope import rotary_table
from m2kit.training.models.transformer import NORM_EPS

FeedForward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_TRIALS = 24  # matrices, more than a cache holds
_OFFICIAL_SLOTS = 8  # the official cache is 1 + N rounded up to a multiple of this


class EagerBackend(Backend):
    """Steps and decoder of a spec, in eager PyTorch, float32."""

    def __init__(
        self, spec: ModelSpec, *, threads: int, official: bool = False, compiled: bool = False
    ) -> None:
        """Draw weights; `threads` holds for the whole process. `compiled` is torch.compile of the
        feed-forward parts and norms, whose shapes do not change with the position."""
        assert spec.transformer is not None
        torch.set_num_threads(threads)
        self._threads = threads
        self._spec, self._official = spec, official
        self._feed_forward = torch.compile(_feed_forward) if compiled else _feed_forward
        if compiled:  # fails here where there is no compiler
            self._feed_forward(torch.ones(2, 8), torch.ones(8), *(torch.ones(8, 8),) * 3)
        self._decoder: torch.nn.Module | None = None
        self._weights = _Weights(spec.transformer, not official and _transposed_is_faster(spec))

    @property
    def threads(self) -> int:
        """Of the whole process."""
        return self._threads

    @torch.inference_mode()
    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the decoder, the only tokenizer graph it has."""
        assert graph == contract.DECODER
        if self._decoder is None:
            tokenizer = resolve(FAMILIES[self._spec.tokenizer.family].model)(self._spec.tokenizer)
            self._decoder = tokenizer.decoder.eval()
        return {contract.IMAGE: self._decoder(torch.from_numpy(feeds[contract.CODES])).numpy()}

    def open_steps(self, rows: int) -> EagerSteps:
        """Both steps with caches for `rows` rows."""
        return EagerSteps(self._weights, rows, self._official, self._feed_forward)

    def active(self) -> JsonObject:
        """What runs and how."""
        return {"backend": f"torch {torch.__version__}", "threads": torch.get_num_threads()}

    def close(self) -> None:
        """Nothing to release."""


@torch.inference_mode()
def _transposed_is_faster(spec: ModelSpec) -> bool:
    """Whether two rows are multiplied faster by weights stored as (in, out)."""
    assert spec.transformer is not None
    width, ffn = spec.transformer.width, spec.transformer.ffn_width
    x = torch.randn(2, width)
    stacks = (
        [torch.randn(width, ffn) for _ in range(_TRIALS)],
        [torch.randn(ffn, width).t() for _ in range(_TRIALS)],
    )
    best = [float("inf")] * 2
    for _ in range(5):
        for kind, stack in enumerate(stacks):
            began = time.perf_counter()
            for weight in stack:
                torch.mm(x, weight)
            best[kind] = min(best[kind], time.perf_counter() - began)
    return best[0] < best[1]


class _Weights:
    """All matrices of a transformer, small random numbers."""

    def __init__(self, spec: TransformerSpec, transposed: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def matrix(size_in: int, size_out: int) -> Tensor:
            shape = (size_in, size_out) if transposed else (size_out, size_in)
            drawn = torch.randn(shape, generator=generator).mul_(0.02)
            return drawn if transposed else drawn.t()  # a view: multiplied as torch.nn.Linear does

        def layers(count: int) -> list[dict[str, Tensor]]:
            width, ffn = spec.width, spec.ffn_width
            return [
                {
                    "wqkv": matrix(width, 3 * width),
                    "wo": matrix(width, width),
                    "w1": matrix(width, ffn),
                    "w3": matrix(width, ffn),
                    "w2": matrix(ffn, width),
                }
                for _ in range(count)
            ]

        self.spec = spec
        self.inter, self.intra = layers(spec.inter_layers), layers(spec.intra_layers)
        self.heads = [matrix(spec.width, size) for size in spec.vocabularies]
        self.norm = torch.ones(spec.width)
        self.tables = [torch.randn(size, spec.width) * 0.02 for size in spec.vocabularies]
        self.classes = torch.randn(spec.classes + 1, spec.width) * 0.02
        self.rope = rotary_table(spec.grid, spec.head_size, spec.rope_base)


class EagerSteps(Steps):
    """Inter and intra step; the hidden buffer of one is an input of the other."""

    def __init__(
        self, weights: _Weights, rows: int, official: bool, feed_forward: FeedForward
    ) -> None:
        """Allocate buffers and caches."""
        spec = weights.spec
        slots = spec.positions
        if official:
            slots = -(-(slots + 1) // _OFFICIAL_SLOTS) * _OFFICIAL_SLOTS
        inter = _EagerLayers(weights, weights.inter, rows, slots, feed_forward)
        inter.masked = official
        self.inter = _EagerInter(weights, inter)
        intra = _EagerLayers(
            weights, weights.intra, rows, slots if official else spec.sub_tokens, feed_forward
        )
        intra.masked = official
        self.intra = _EagerIntra(weights, intra, self.inter.outputs[contract.HIDDEN])


class _EagerLayers:
    """A stack of layers with its cache, one position at a time."""

    def __init__(
        self,
        weights: _Weights,
        layers: list[dict[str, Tensor]],
        rows: int,
        slots: int,
        feed_forward: FeedForward,
    ) -> None:
        spec = weights.spec
        self.feed_forward = feed_forward
        self.weights, self.layers, self.rows, self.slots = weights, layers, rows, slots
        self.heads, self.size = spec.heads, spec.head_size
        self.masked = False
        self.allocate()

    def allocate(self) -> None:
        shape = (len(self.layers), 2, self.rows, self.heads, self.slots, self.size)
        self.cache = torch.zeros(shape)

    def forward(self, x: Tensor, position: int) -> Tensor:
        """(R, D) -> (R, D)."""
        norm, width = self.weights.norm, x.shape[-1]
        cos, sin = self.weights.rope[position].unbind(-1)
        mask = (torch.arange(self.slots) <= position)[None] if self.masked else None
        end = self.slots if self.masked else position + 1
        for layer, w in enumerate(self.layers):
            normed = functional.rms_norm(x, (width,), norm, NORM_EPS)
            qkv = (normed @ w["wqkv"]).view(self.rows, 3, self.heads, self.size)
            pairs = torch.unflatten(qkv[:, :2], -1, (-1, 2))
            even, odd = pairs[..., 0], pairs[..., 1]
            turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
            keys, values = self.cache[layer]
            keys[:, :, position], values[:, :, position] = turned[:, 1], qkv[:, 2]
            out = functional.scaled_dot_product_attention(
                turned[:, 0, :, None], keys[:, :, :end], values[:, :, :end], attn_mask=mask
            )
            x = torch.addmm(x, out.reshape(self.rows, width), w["wo"])
            x = self.feed_forward(x, norm, w["w1"], w["w3"], w["w2"])
        return x


def _feed_forward(x: Tensor, norm: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
    """(R, D) -> (R, D)."""
    normed = functional.rms_norm(x, (x.shape[-1],), norm, NORM_EPS)
    return torch.addmm(x, functional.silu(normed @ w1).mul_(normed @ w3), w2)


class _EagerInter:
    def __init__(self, weights: _Weights, layers: _EagerLayers) -> None:
        spec, rows = weights.spec, layers.rows
        self._weights, self._layers = weights, layers
        self.inputs, self.outputs = step_buffers(spec, contract.INTER_STEP, rows)

    def reset(self) -> None:
        """Begin a new sequence."""

    @torch.inference_mode()
    def run(self, position: int) -> None:
        """Compute one position; the cache is written in place."""
        if position == 0:
            x = self._weights.classes[torch.from_numpy(self.inputs[contract.CLASS_ID])]
        else:
            token = torch.from_numpy(self.inputs[contract.TOKEN])
            parts = [table[token[:, k]] for k, table in enumerate(self._weights.tables)]
            x = torch.stack(parts).sum(0)
        self.outputs[contract.HIDDEN][:] = self._layers.forward(x, position).numpy()

    def commit(self, position: int) -> None:
        """Nothing to do."""


class _EagerIntra:
    def __init__(
        self, weights: _Weights, layers: _EagerLayers, hidden: npt.NDArray[np.float32]
    ) -> None:
        spec, rows = weights.spec, layers.rows
        self._weights, self._layers = weights, layers
        self.inputs, self.outputs = step_buffers(spec, contract.INTRA_STEP, rows)
        self.inputs[contract.HIDDEN] = hidden

    def reset(self) -> None:
        """Begin a new position."""
        if self._layers.masked:  # a habit of the official sampler
            self._layers.allocate()

    @torch.inference_mode()
    def run(self, position: int) -> None:
        """Compute one sub-position and its own head."""
        if position == 0:
            x = torch.from_numpy(self.inputs[contract.HIDDEN])
        else:
            ids = torch.from_numpy(self.inputs[contract.SUB_TOKEN])
            x = self._weights.tables[position - 1][ids]
        x = self._layers.forward(x, position)
        normed = functional.rms_norm(x, (x.shape[-1],), self._weights.norm, NORM_EPS)
        logits = normed @ self._weights.heads[position]
        self.outputs[contract.logits(position)][:] = logits.numpy()

    def commit(self, position: int) -> None:
        """Nothing to do."""
