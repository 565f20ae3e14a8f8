"""Makes the reference that travels with a bundle: inputs, and what PyTorch computes from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import uniforms
from m2kit.runtime.verification import (
    CLASS_IDS,
    CODE_TOKENS,
    CODES,
    DECODED,
    GUIDANCE,
    IMAGES,
    LATENTS,
    TOKENS,
    greedy_trajectory,
    logits_name,
)
from m2kit.tokens import codes_from_tokens
from m2kit.training.checkpoint import TorchModel
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend

_IMAGES = 2
_TOKENIZER_GRID = (4, 6)  # latent grid of the images that check a tokenizer alone


def make_reference(engine: Engine, model: TorchModel) -> dict[str, npt.NDArray[Any]]:
    """The reference of a model.

    Args:
        engine: The exported graphs; decodes the trajectory.
        model: The same weights in PyTorch; computes everything that is compared.

    Returns:
        The arrays that m2kit.runtime.verification names.
    """
    spec = model.spec
    images = _images(spec)
    in_torch = TorchBackend(model)
    latents = in_torch.run(contract.ENCODER, {contract.IMAGE: images})[contract.LATENT]
    quantized = in_torch.run(contract.LFQ, {contract.LATENT: latents})
    tokens = quantized[contract.TOKENS]
    reference: dict[str, npt.NDArray[Any]] = {
        IMAGES: images,
        LATENTS: latents,
        CODES: quantized[contract.CODES],
        CODE_TOKENS: tokens,
    }
    if model.transformer is not None:
        classes = model.transformer.spec.classes
        reference[CLASS_IDS] = np.linspace(0, classes - 1, _IMAGES).astype(np.int64)
        reference[GUIDANCE] = np.array([2.0 + 0.5 * k for k in range(len(spec.bits))])
        tokens = greedy_trajectory(engine, reference)
        reference |= _logits(model.transformer, reference[CLASS_IDS], tokens)
    codes = codes_from_tokens(tokens, spec.bits, spec.tokenizer.bit_order)
    decoded = in_torch.run(contract.DECODER, {contract.CODES: codes})[contract.IMAGE]
    return reference | {TOKENS: tokens, DECODED: decoded}


def _logits(
    transformer: Transformer, classes: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """Teacher-forced logits of conditional rows, then of unconditional ones."""
    spec = transformer.spec
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    flat = tokens.reshape(len(tokens), spec.positions, -1)
    forced = torch.from_numpy(np.concatenate([flat, flat]))
    with torch.no_grad():
        logits = transformer(torch.from_numpy(rows), forced)
    return {
        logits_name(k): part.view(len(rows), *spec.grid, -1).numpy()
        for k, part in enumerate(logits)
    }


def _images(spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Fixed smooth noise in [-1, 1]: blocks of 4 x 4 pixels, and finer noise on top."""
    factor = spec.tokenizer.downsampling
    height, width = spec.image_size or tuple(factor * side for side in _TOKENIZER_GRID)
    shape = (_IMAGES, 3, height, width)
    fine = uniforms(0, np.arange(_IMAGES, dtype=np.uint64), 3 * height * width).reshape(shape)
    coarse = fine[:, :, ::4, ::4].repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    return (1.6 * coarse + 0.4 * fine - 1).astype(np.float32)
