"""Lookup-Free Quantization (arXiv 2310.05737; the sub-token split is arXiv 2409.04410, eq. 2).

The codebook is {-1, +1}^Z and is never stored: a code is the sign of the latent, an index is its
bits. There are no parameters. A latent of exactly 0 becomes -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2kit.families.sign_bits import bit_weights


def quantize(latent: Tensor) -> Tensor:
    """(B, Z, *grid) latent -> codes in {-1, +1}; the gradient passes straight through."""
    codes = torch.where(latent > 0, 1.0, -1.0).to(latent.dtype)
    return latent + (codes - latent).detach() if latent.requires_grad else codes


def tokens_from_codes(codes: Tensor, bits: tuple[int, ...], bit_order: str) -> Tensor:
    """(B, Z, *grid) codes -> (B, *grid, K) int64 tokens."""
    weights = torch.tensor(bit_weights(bits, bit_order), device=codes.device)
    valued = (codes > 0).movedim(1, -1) * weights  # (B, *grid, Z)
    return torch.stack([part.sum(-1) for part in torch.split(valued, list(bits), dim=-1)], dim=-1)
