"""What an autoregressive model makes small: the cross-entropy of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
