"""A tokenizer with a learned codebook (VQ), what LFQ is judged by; m2kit's but for its quantizer.

As in VQGAN (arXiv 2012.09841): 2^Z code vectors, uniform in +-2^-Z at first; a latent becomes the
nearest one; the loss has |sg(z) - e|^2 + beta |z - sg(e)|^2 where LFQ has its entropy and
commitment terms. A vector that is never used is never moved. The vectors have Z numbers, so that
encoder, decoder and latent are those of LFQ with as many codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.families.image import ImageTokenizerSpec
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes import tokenizer as recipe
from m2kit.training.recipes.phase import Batch, Losses
from m2kit.training.recipes.tokenizer import TokenizerRecipe


class VQTokenizer(Tokenizer):
    """Encoder, nearest code vector and decoder."""

    def __init__(self, spec: ImageTokenizerSpec) -> None:
        super().__init__(spec)
        self.codebook = nn.Embedding(2**spec.code_bits, spec.code_bits)
        nn.init.uniform_(self.codebook.weight, -(2.0**-spec.code_bits), 2.0**-spec.code_bits)

    def tokens(self, codes: Tensor, vocabularies: tuple[int, ...]) -> Tensor:
        """(B, Z, h, w) codes -> (B, h, w, 1) int64, the numbers of their vectors."""
        assert len(vocabularies) == 1, "code vectors have no sub-tokens"
        flat = codes.movedim(1, -1).flatten(0, -2)  # (T, Z)
        # the squared distance without what is the same for all vectors
        distance = self.codebook.weight.square().sum(1) - 2 * flat @ self.codebook.weight.T
        return distance.argmin(1).view(len(codes), *codes.shape[2:], 1)

    def vectors(self, latent: Tensor) -> Tensor:
        """(B, Z, h, w) latent -> the nearest code vectors; their gradient goes to the codebook."""
        nearest = self.tokens(latent, self.spec.vocabularies)[..., 0]
        found: Tensor = self.codebook(nearest).movedim(-1, 1)
        return found

    def quantize(self, latent: Tensor) -> Tensor:
        """(B, Z, h, w) latent -> code vectors; the gradient passes straight through."""
        vectors = self.vectors(latent)
        return latent + (vectors - latent).detach() if latent.requires_grad else vectors


class VQRecipe(TokenizerRecipe):
    """m2kit's recipe without adversary and LPIPS, with the losses of VQ."""

    def _generator_losses(self, _step: int, batch: Batch) -> Losses:
        settings, (image, *_) = self.settings, batch
        rebuilt, latent = self.generator.forward(image)
        vectors = self.generator.network.vectors(latent)
        l1 = (rebuilt - image).abs().mean()
        commitment = functional.mse_loss(latent, vectors.detach())
        codebook = functional.mse_loss(vectors, latent.detach())
        loss = settings.l1_weight * l1 + codebook + settings.commitment_weight * commitment
        none = torch.zeros(())
        return {
            "l1": l1, "commitment": commitment, "entropy_per_position": none,
            "entropy_of_mean": none, "loss": loss,
        }  # fmt: skip


@contextmanager
def vector_quantization() -> Iterator[None]:
    """Tokenizer runs inside it train this model in place of m2kit's."""
    with (
        patch.object(recipe, "Tokenizer", VQTokenizer),
        patch.object(recipe, "TokenizerRecipe", VQRecipe),
    ):
        yield
