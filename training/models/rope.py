"""2-D rotary position embedding on interleaved pairs (as in LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(grid: tuple[int, ...], head_size: int, base: float) -> Tensor:
    """(N + 1, d / 2, 2) float32: cos and sin of each pair; row 0, the class token, is all zero.

    Row 1 + r * w + c turns the first d/4 pairs by r and the other d/4 by c times their frequency
    base^(-2i / (d/2)).
    """
    half = head_size // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2)[: half // 2].float() / half)
    height, width = grid
    rows = torch.outer(torch.arange(height).float(), frequencies)  # (h, d / 4)
    columns = torch.outer(torch.arange(width).float(), frequencies)
    angles = torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1
    ).flatten(0, 1)  # (N, d / 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(1, half, 2), table])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn (R, H, T, d) by table rows (T, d / 2, 2); the result is of the table's dtype."""
    pairs = torch.unflatten(x.float(), -1, (-1, 2))
    cos, sin = rope[..., 0], rope[..., 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
