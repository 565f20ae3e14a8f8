"""The Backend protocol over the PyTorch model: the reference that exports are compared with, and
what training draws its samples through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.records import JsonObject
from m2kit.runtime.backend import IMAGES_AT_ONCE, Backend, Buffers, Steps, step_buffers
from m2kit.training.models.model import TorchModel

Tensors = Mapping[str, Tensor]
_PIXELS_AT_ONCE = 2**20  # of encoder and decoder: as many as 16 pictures of 256 x 256
Compute = Callable[[Tensors, Tensors, int], None]  # of inputs, outputs and the position


class TorchBackend(Backend):
    """PyTorch on the CPU, float32."""

    def __init__(self, model: TorchModel) -> None:
        """Wrap a model; it is used in evaluation mode."""
        self._model = model

    @torch.no_grad()
    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run encoder, lfq or decoder on named inputs; returns its named outputs."""
        spec, tokenizer = self._model.spec, self._model.tokenizer
        if graph == contract.ENCODER:
            latent = tokenizer.encoder(torch.from_numpy(feeds[contract.IMAGE]))
            return {contract.LATENT: latent.numpy()}
        if graph == spec.tokenizer.quantizer:
            codes = tokenizer.quantize(torch.from_numpy(feeds[contract.LATENT]))
            tokens = tokenizer.tokens(codes, spec.vocabularies)
            return {contract.CODES: codes.numpy(), contract.TOKENS: tokens.numpy()}
        image = tokenizer.decoder(torch.from_numpy(feeds[contract.CODES]))
        return {contract.IMAGE: image.numpy()}

    def images_at_once(self, size: tuple[int, ...]) -> int:
        """Fewer of large pictures and of clips, whose results between the layers take memory."""
        return max(1, min(IMAGES_AT_ONCE, _PIXELS_AT_ONCE // math.prod(size)))

    def open_steps(self, rows: int) -> TorchSteps:
        """Both steps with caches for `rows` rows."""
        transformer = self._model.transformer
        assert transformer is not None
        spec = transformer.spec
        heads, size = spec.heads, spec.head_size
        inter_cache = torch.zeros(spec.inter_layers, 2, rows, heads, spec.positions, size)
        intra_cache = torch.zeros(spec.intra_layers, 2, rows, heads, spec.sub_tokens, size)

        def inter(inputs: Tensors, outputs: Tensors, position: int) -> None:
            if position == 0:
                x = transformer.class_emb(inputs[contract.CLASS_ID])
            else:
                x = transformer.embed_token(inputs[contract.TOKEN])
            hidden = transformer.inter(x[:, None], inter_cache, position)
            outputs[contract.HIDDEN].copy_(hidden[:, 0])

        def intra(inputs: Tensors, outputs: Tensors, position: int) -> None:
            if position == 0:
                x = inputs[contract.HIDDEN]
            else:
                x = transformer.embed(position - 1, inputs[contract.SUB_TOKEN])
            hidden = transformer.intra(x[:, None], intra_cache, position)[:, 0]
            outputs[contract.logits(position)].copy_(transformer.head[position](hidden))

        return TorchSteps(spec, rows, inter, intra)

    def active(self) -> JsonObject:
        """What runs and how."""
        return {"backend": f"torch {torch.__version__}"}

    def close(self) -> None:
        """Nothing to release."""


class TorchSteps(Steps):
    """Inter and intra step; the hidden buffer of one is an input of the other."""

    def __init__(
        self,
        spec: TransformerSpec,
        rows: int,
        inter: Compute,
        intra: Compute,
        begin_position: Callable[[], None] | None = None,
    ) -> None:
        """Allocate buffers for R rows; `begin_position` is called before the sub-positions."""
        self.inter = TorchStep(inter, *step_buffers(spec, contract.INTER_STEP, rows))
        inputs, outputs = step_buffers(spec, contract.INTRA_STEP, rows)
        inputs[contract.HIDDEN] = self.inter.outputs[contract.HIDDEN]
        self.intra = TorchStep(intra, inputs, outputs, begin_position)


class TorchStep:
    """One step graph, as a function of its inputs, its outputs and the position."""

    def __init__(
        self,
        compute: Compute,
        inputs: Buffers,
        outputs: Buffers,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Bind the buffers; `compute` gets tensors in the same memory, and keeps its own cache."""
        self.inputs, self.outputs = inputs, outputs
        self._compute, self._begin = compute, begin
        self._read = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self._written = {name: torch.from_numpy(array) for name, array in outputs.items()}

    def reset(self) -> None:
        """Begin a new sequence; later slots of the cache are never read."""
        if self._begin is not None:
            self._begin()

    @torch.inference_mode()
    def run(self, position: int) -> None:
        """Compute one position; the cache is written in place."""
        self._compute(self._read, self._written, position)

    def commit(self, position: int) -> None:
        """Nothing to do: `run` has written the cache."""
