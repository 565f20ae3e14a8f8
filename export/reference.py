"""Makes the reference that travels with a bundle: inputs, and what PyTorch computes from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.parameters import parameter_counts
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
    logits_name,
)
from m2kit.tokens import codes_from_tokens
from m2kit.training.models.model import TorchModel
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend

_IMAGES = 2
_LARGE_PARAMETERS = 100_000_000  # from here on one image: time and disk, and batches change nothing
_TOKENIZER_GRID = (4, 6)  # latent grid of the images that check a tokenizer alone

Arrays = dict[str, npt.NDArray[Any]]


def make_inputs(spec: ModelSpec) -> Arrays:
    """What the model is run on: images, and classes and guidance of a trajectory."""
    count = _IMAGES if sum(parameter_counts(spec).values()) < _LARGE_PARAMETERS else 1
    inputs: Arrays = {IMAGES: _images(spec, count)}
    if spec.transformer is not None:
        classes = spec.transformer.classes
        inputs[CLASS_IDS] = np.linspace(0, classes - 1, _IMAGES).astype(np.int64)[-count:]
        inputs[GUIDANCE] = np.array([2.0 + 0.5 * k for k in range(len(spec.bits))])
    return inputs


def score_in_torch(model: TorchModel, inputs: Arrays, tokens: npt.NDArray[np.int64]) -> Arrays:
    """The reference of a model.

    Args:
        model: The model in PyTorch; computes everything that is compared.
        inputs: What `make_inputs` gave.
        tokens: (B, h, w, K) of the trajectory; a tokenizer alone takes its own code tokens.

    Returns:
        The arrays that m2kit.runtime.verification names.
    """
    spec, in_torch = model.spec, TorchBackend(model)
    latents = in_torch.run(contract.ENCODER, {contract.IMAGE: inputs[IMAGES]})[contract.LATENT]
    quantized = in_torch.run(contract.LFQ, {contract.LATENT: latents})
    reference = inputs | {
        LATENTS: latents,
        CODES: quantized[contract.CODES],
        CODE_TOKENS: quantized[contract.TOKENS],
    }
    if model.transformer is None:
        tokens = quantized[contract.TOKENS]
    else:
        reference |= _logits(model.transformer, inputs[CLASS_IDS], tokens)
    codes = codes_from_tokens(tokens, spec.bits, spec.tokenizer.bit_order)
    decoded = in_torch.run(contract.DECODER, {contract.CODES: codes})[contract.IMAGE]
    return reference | {TOKENS: tokens, DECODED: decoded}


def _logits(
    transformer: Transformer, classes: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> Arrays:
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


def _images(spec: ModelSpec, count: int) -> npt.NDArray[np.float32]:
    """Fixed smooth noise in [-1, 1]: blocks of 4 x 4 pixels, and finer noise on top."""
    factor = spec.tokenizer.downsampling
    height, width = spec.image_size or tuple(factor * side for side in _TOKENIZER_GRID)
    shape = (count, 3, height, width)
    fine = uniforms(0, np.arange(count, dtype=np.uint64), 3 * height * width).reshape(shape)
    coarse = fine[:, :, ::4, ::4].repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    return (1.6 * coarse + 0.4 * fine - 1).astype(np.float32)
