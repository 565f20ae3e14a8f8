"""Lookup-Free Quantization (arXiv 2310.05737; the sub-token split is arXiv 2409.04410, eq. 2).

The codebook is {-1, +1}^Z and is never stored: a code is the sign of the latent, an index is its
bits. There are no parameters. A latent of exactly 0 becomes -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2kit.families.sign_bits import bit_weights

_EXACT_BITS = 12  # up to here the batch entropy enumerates all 2^Z codes


def quantize(latent: Tensor) -> Tensor:
    """(B, Z, h, w) latent -> codes in {-1, +1}; the gradient passes straight through."""
    codes = torch.where(latent > 0, 1.0, -1.0).to(latent.dtype)
    return latent + (codes - latent).detach() if latent.requires_grad else codes


def tokens_from_codes(codes: Tensor, bits: tuple[int, ...], bit_order: str) -> Tensor:
    """(B, Z, h, w) codes -> (B, h, w, K) int64 tokens."""
    weights = torch.tensor(bit_weights(bits, bit_order), device=codes.device)
    valued = (codes > 0).permute(0, 2, 3, 1) * weights  # (B, h, w, Z)
    return torch.stack([part.sum(-1) for part in valued.split(list(bits), dim=-1)], dim=-1)


def entropy_loss(latent: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean entropy of one position's code, and entropy of the mean code, both in nats.

    The soft assignment is softmax over all codes c of 2 z.c / temperature. It factorises into
    bits, so the first term is an exact sum of Z binary entropies; the second needs the joint
    distribution and enumerates it for groups of up to 12 bits (beyond 12 bits: an upper bound).

    Args:
        latent: (B, Z, h, w).
        temperature: The official value is 0.01.
    """
    flat = latent.permute(0, 2, 3, 1).flatten(0, 2)  # (T, Z)
    log_one = torch.nn.functional.logsigmoid(4 * flat / temperature)
    log_zero = torch.nn.functional.logsigmoid(-4 * flat / temperature)
    one, zero = log_one.exp(), log_zero.exp()
    per_position = -(one * log_one + zero * log_zero).sum(-1).mean()
    batch = sum(
        (_joint_entropy(part) for part in one.split(_EXACT_BITS, dim=-1)), start=flat.new_zeros(())
    )
    return per_position, batch


def _joint_entropy(one: Tensor) -> Tensor:
    """Entropy in nats of the mean over T of the product distribution of (T, bits) probabilities."""
    joint = one.new_ones(one.shape[0], 1)
    for bit in range(one.shape[1]):
        p = one[:, bit : bit + 1]
        joint = torch.cat([joint * (1 - p), joint * p], dim=1)
    mean = joint.mean(0)
    return -(mean * (mean + 1e-12).log()).sum()
