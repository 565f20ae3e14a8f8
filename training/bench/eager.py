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

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.families.family import FAMILIES
from m2kit.records import JsonObject
from m2kit.references import resolve
from m2kit.runtime.backend import Backend
from m2kit.training.models.model import TorchModel
from m2kit.training.models.rope import rotary_table
from m2kit.training.models.transformer import NORM_EPS
from m2kit.training.torch_backend import Tensors, TorchBackend, TorchSteps

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
        self._spec, self._official = spec, official
        self._feed_forward = torch.compile(_feed_forward) if compiled else _feed_forward
        if compiled:  # fails here where there is no compiler
            self._feed_forward(torch.ones(2, 8), torch.ones(8), *(torch.ones(8, 8),) * 3)
        self._decoder: torch.nn.Module | None = None
        self._weights = _Weights(spec.transformer, not official and _transposed_is_faster(spec))

    @property
    def threads(self) -> int:
        """Of the whole process."""
        return torch.get_num_threads()

    @torch.inference_mode()
    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the decoder, the only tokenizer graph it has."""
        assert graph == contract.DECODER
        if self._decoder is None:
            tokenizer = resolve(FAMILIES[self._spec.tokenizer.family].model)(self._spec.tokenizer)
            self._decoder = tokenizer.decoder.eval()
        return {contract.IMAGE: self._decoder(torch.from_numpy(feeds[contract.CODES])).numpy()}

    def open_steps(self, rows: int) -> TorchSteps:
        """Both steps with caches for `rows` rows."""
        own, spec = self._weights, self._weights.spec
        inter_slots, intra_slots = spec.positions, spec.sub_tokens
        if self._official:
            inter_slots = intra_slots = -(-(inter_slots + 1) // _OFFICIAL_SLOTS) * _OFFICIAL_SLOTS
        how = self._official, self._feed_forward
        inter_layers = _EagerLayers(own, own.inter, rows, inter_slots, *how)
        intra_layers = _EagerLayers(own, own.intra, rows, intra_slots, *how)

        def inter(inputs: Tensors, outputs: Tensors, position: int) -> None:
            if position == 0:
                x = own.classes[inputs[contract.CLASS_ID]]
            else:
                token = inputs[contract.TOKEN]
                x = torch.stack([table[token[:, k]] for k, table in enumerate(own.tables)]).sum(0)
            outputs[contract.HIDDEN].copy_(inter_layers.forward(x, position))

        def intra(inputs: Tensors, outputs: Tensors, position: int) -> None:
            if position == 0:
                x = inputs[contract.HIDDEN]
            else:
                x = own.tables[position - 1][inputs[contract.SUB_TOKEN]]
            x = intra_layers.forward(x, position)
            normed = functional.rms_norm(x, (x.shape[-1],), own.norm, NORM_EPS)
            outputs[contract.logits(position)].copy_(normed @ own.heads[position])

        begin_position = intra_layers.allocate if self._official else None
        return TorchSteps(spec, rows, inter, intra, begin_position)

    def active(self) -> JsonObject:
        """What runs and how."""
        return {"backend": f"torch {torch.__version__}", "threads": self.threads}

    def close(self) -> None:
        """Nothing to release."""


def eager_tokenizer(spec: ModelSpec, threads: int) -> Backend:
    """Encoder, quantizer and decoder of a spec; `threads` holds for the whole process."""
    torch.set_num_threads(threads)
    tokenizer = resolve(FAMILIES[spec.tokenizer.family].model)(spec.tokenizer)
    return TorchBackend(TorchModel(spec, tokenizer.eval(), None))


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

        width, ffn = spec.width, spec.ffn_width
        sizes = {
            "wqkv": (width, 3 * width),
            "wo": (width, width),
            "w1": (width, ffn),
            "w3": (width, ffn),
            "w2": (ffn, width),
        }

        def layers(count: int) -> list[dict[str, Tensor]]:
            return [{name: matrix(*size) for name, size in sizes.items()} for _ in range(count)]

        self.spec = spec
        self.inter, self.intra = layers(spec.inter_layers), layers(spec.intra_layers)
        self.heads = [matrix(width, size) for size in spec.vocabularies]
        self.norm = torch.ones(width)
        self.tables = [torch.randn(size, width) * 0.02 for size in spec.vocabularies]
        self.classes = torch.randn(spec.classes + 1, width) * 0.02
        self.rope = rotary_table(spec.grid, spec.head_size, spec.rope_base)


class _EagerLayers:
    """A stack of layers with its cache, one position at a time."""

    def __init__(
        self,
        weights: _Weights,
        layers: list[dict[str, Tensor]],
        rows: int,
        slots: int,
        masked: bool,
        feed_forward: FeedForward,
    ) -> None:
        self.weights, self.layers, self.rows, self.slots = weights, layers, rows, slots
        self.masked, self.feed_forward = masked, feed_forward
        self.heads, self.size = weights.spec.heads, weights.spec.head_size
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
