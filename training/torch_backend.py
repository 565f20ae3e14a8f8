"""The Backend protocol over the PyTorch model: the reference that exports are compared with, and
what training draws its samples through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.records import JsonObject
from m2kit.runtime.backend import Backend, Steps, step_buffers
from m2kit.training.models.model import TorchModel
from m2kit.training.models.transformer import KeyValueCache, Transformer


class TorchBackend(Backend):
    """PyTorch on the CPU, float32."""

    name = "torch"

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

    def open_steps(self, rows: int) -> TorchSteps:
        """Both steps with caches for `rows` rows."""
        assert self._model.transformer is not None
        return TorchSteps(self._model.transformer, rows)

    def active(self) -> JsonObject:
        """What runs and how."""
        return {"backend": f"{self.name} {torch.__version__}"}

    def close(self) -> None:
        """Nothing to release."""


class TorchSteps(Steps):
    """Inter and intra step; the hidden buffer of one is an input of the other."""

    def __init__(self, transformer: Transformer, rows: int) -> None:
        """Allocate buffers and caches."""
        spec = transformer.spec
        self.inter = InterStep(transformer, spec, rows)
        self.intra = IntraStep(transformer, spec, rows, self.inter.outputs[contract.HIDDEN])


class InterStep:
    """One position through the inter transformer."""

    def __init__(self, transformer: Transformer, spec: TransformerSpec, rows: int) -> None:
        """Allocate buffers and the cache."""
        self._transformer = transformer
        self._cache = KeyValueCache(spec.inter_layers, rows, spec.positions, spec)
        self.inputs, self.outputs = step_buffers(spec, contract.INTER_STEP, rows)

    def reset(self) -> None:
        """Begin a new sequence; later slots are never read."""

    @torch.no_grad()
    def run(self, position: int) -> None:
        """Compute one position; the cache is written in place."""
        if position == 0:
            x = self._transformer.class_emb(torch.from_numpy(self.inputs[contract.CLASS_ID]))
        else:
            x = self._transformer.embed_token(torch.from_numpy(self.inputs[contract.TOKEN]))
        hidden = self._transformer.inter(x[:, None], self._cache, position)
        self.outputs[contract.HIDDEN][:] = hidden[:, 0].numpy()

    def commit(self, position: int) -> None:
        """Nothing to do: `run` has written the cache."""


class IntraStep:
    """One sub-position through the intra transformer and its heads."""

    def __init__(
        self,
        transformer: Transformer,
        spec: TransformerSpec,
        rows: int,
        hidden: npt.NDArray[np.float32],
    ) -> None:
        """Allocate buffers and the cache."""
        self._transformer = transformer
        self._cache = KeyValueCache(spec.intra_layers, rows, spec.sub_tokens, spec)
        self.inputs, self.outputs = step_buffers(spec, contract.INTRA_STEP, rows)
        self.inputs[contract.HIDDEN] = hidden

    def reset(self) -> None:
        """Begin a new position; later slots are never read."""

    @torch.no_grad()
    def run(self, position: int) -> None:
        """Compute one sub-position; only its own head is evaluated."""
        if position == 0:
            x = torch.from_numpy(self.inputs[contract.HIDDEN])
        else:
            ids = torch.from_numpy(self.inputs[contract.SUB_TOKEN])
            x = self._transformer.embed(position - 1, ids)
        hidden = self._transformer.intra(x[:, None], self._cache, position)[:, 0]
        self.outputs[contract.logits(position)][:] = self._transformer.head[position](hidden)

    def commit(self, position: int) -> None:
        """Nothing to do: `run` has written the cache."""
