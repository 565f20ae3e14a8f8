"""What is made small: losses of latents and of logits, without weights of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_EXACT_BITS = 12  # up to here the batch entropy enumerates all 2^Z codes


def token_nats(logits: list[Tensor], tokens: Tensor) -> Tensor:
    """Mean over tokens of the cross-entropy in nats, summed over sub-tokens.

    Args:
        logits: K tensors (B, N, V_k).
        tokens: (B, N, K) int64.
    """
    losses = [
        functional.cross_entropy(part.flatten(0, 1), tokens[..., k].flatten())
        for k, part in enumerate(logits)
    ]
    return torch.stack(losses).sum()


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
    log_one = functional.logsigmoid(4 * flat / temperature)
    log_zero = functional.logsigmoid(-4 * flat / temperature)
    one, zero = log_one.exp(), log_zero.exp()
    per_position = -(one * log_one + zero * log_zero).sum(-1).mean()
    parts = torch.split(one, _EXACT_BITS, dim=-1)
    batch = sum((_joint_entropy(part) for part in parts), start=flat.new_zeros(()))
    return per_position, batch


def _joint_entropy(one: Tensor) -> Tensor:
    """Entropy in nats of the mean over T of the product distribution of (T, bits) probabilities."""
    joint = one.new_ones(one.shape[0], 1)
    for bit in range(one.shape[1]):
        p = one[:, bit : bit + 1]
        joint = torch.cat([joint * (1 - p), joint * p], dim=1)
    mean = joint.mean(0)
    return -(mean * (mean + 1e-12).log()).sum()
