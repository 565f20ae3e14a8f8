"""Random weights in the official layouts, for trials and benchmarks where no weights are at hand.

Everything is drawn, heads included: the official initialisation zeroes them, and then parity,
divergence and greedy decoding prove nothing. Norm weights are near 1, not 1, and a tokenizer's EMA
weights are not its live ones, so that a confusion shows.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from m2kit.config import ModelSpec
from m2kit.training.checkpoints.writing import (
    EMA_DECAY,
    write_ar_checkpoint,
    write_tokenizer_checkpoint,
)
from m2kit.training.models.model import TRANSFORMER, expected_shapes

_EMBEDDING_STD = 0.02
_HEAD_GAIN = 2.0  # standard deviation of the logits: arg maxima stand out as in a trained model
_LINEAR_GAIN = 0.5
_NORM_STD, _BIAS_STD, _EMA_STD = 0.1, 0.05, 0.002


def write_random_checkpoint(path: Path, spec: ModelSpec, seed: int) -> None:
    """Write a checkpoint of random weights: an AR file, or a tokenizer file with live and EMA.

    Args:
        path: The file.
        spec: The architecture; the file does not hold it, as a published one would not.
        seed: 0 <= seed < 2^32. With one torch version the same seed gives the same weights.

    Raises:
        FolderError: It cannot be written.
    """
    live = {name: _draw(name, shape, seed) for name, shape in expected_shapes(spec).items()}
    if spec.transformer is not None:
        write_ar_checkpoint(path, live)
        return
    ema = {name: t + _EMA_STD * _normal(f"ema {name}", t.shape, seed) for name, t in live.items()}
    write_tokenizer_checkpoint(path, live, ema, ema_decay=EMA_DECAY)


def _normal(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal values that depend on seed and name alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(generator=generator)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    values = _normal(name, shape, seed)
    if name.endswith(".bias"):
        return values.mul_(_BIAS_STD)
    if len(shape) == 1:
        return values.mul_(_NORM_STD).add_(1)
    fan_in = math.prod(shape[1:])
    if not name.startswith(TRANSFORMER):
        return values.mul_(fan_in**-0.5)
    if name.startswith(f"{TRANSFORMER}head."):
        return values.mul_(_HEAD_GAIN * fan_in**-0.5)
    return values.mul_(_EMBEDDING_STD if "emb" in name else _LINEAR_GAIN * fan_in**-0.5)
