"""The autoregressive model: an inter transformer over positions, an intra one over sub-tokens.

Parameter names are those of the released checkpoints (`transformer.*`). Numerics that must be
copied: RMSNorm eps 1e-5, computed in float32; 2-D rotary embedding on interleaved pairs, the first
half of the pairs turning by row and the second by column, from a table whose first row (the class
token) is all zero, so that the class token's query and key vanish; the intra blocks use the first
K rows of the same table; the context enters the intra blocks without a norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.config import TransformerSpec
from m2kit.training.models.rope import rotary_table, rotate

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm: float32 inside, cast back, then times the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
        return wide.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention, over a whole sequence or one position with a cache."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.wqkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.wo = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, x: Tensor, rope: Tensor, cache: Tensor | None, position: int) -> Tensor:
        """(R, T, D) -> (R, T, D); with a cache of keys and values (2, R, H, S, d), written in
        place, T is 1 and `position` is its slot."""
        rows, length, width = x.shape
        heads = self.wqkv(x).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (R, H, T, d)
        query, key = rotate(query, rope), rotate(key, rope)  # float32 from here on, or float64
        value = value.to(key.dtype)
        if cache is not None:
            cache[0, :, :, position], cache[1, :, :, position] = key[:, :, 0], value[:, :, 0]
            key, value = cache[:, :, :, : position + 1]
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        mixed: Tensor = self.wo(out.transpose(1, 2).reshape(rows, length, width).to(x.dtype))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.w1 = nn.Linear(spec.width, spec.ffn_width, bias=False)
        self.w3 = nn.Linear(spec.width, spec.ffn_width, bias=False)
        self.w2 = nn.Linear(spec.ffn_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, spec: TransformerSpec, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.feed_forward = FeedForward(spec)
        self.attention_norm = RMSNorm(spec.width)
        self.ffn_norm = RMSNorm(spec.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rope: Tensor, cache: Tensor | None, position: int) -> Tensor:
        """(R, T, D) -> (R, T, D)."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, rope, cache, position))
        out: Tensor = x + self.dropout(self.feed_forward(self.ffn_norm(x)))
        return out


class ClassEmbedding(nn.Module):
    """One row per class, and one more for the unconditional token."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(spec.classes + 1, spec.width)

    def forward(self, class_id: Tensor) -> Tensor:
        """(R) int64 -> (R, D)."""
        rows: Tensor = self.embedding_table(class_id)
        return rows


def embedding_names(count: int) -> tuple[str, ...]:
    """Parameter names of the K sub-token embeddings; K = 2 has the official names."""
    return ("pre_emb", "post_emb") if count == 2 else tuple(f"emb_{k}" for k in range(count))


class Transformer(nn.Module):
    """Inter and intra transformer, teacher-forced (`forward`) or a step at a time."""

    rope: Tensor

    def __init__(self, spec: TransformerSpec, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.names = embedding_names(spec.sub_tokens)
        for name, size in zip(self.names, spec.vocabularies, strict=True):
            self.add_module(name, nn.Embedding(size, spec.width))
        self.class_emb = ClassEmbedding(spec)
        self.spatial_blocks = nn.ModuleList(Block(spec, dropout) for _ in range(spec.inter_layers))
        blocks = (Block(spec, dropout) for _ in range(spec.intra_layers))
        self.factorized_blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(spec.width)
        heads = (nn.Linear(spec.width, size, bias=False) for size in spec.vocabularies)
        self.head = nn.ModuleList(heads)
        self.dropout = nn.Dropout(dropout)
        with torch.device("cpu"):  # where all else is still on "meta" too: no checkpoint holds it
            table = rotary_table(spec.grid, spec.head_size, spec.rope_base)
        self.register_buffer("rope", table, persistent=False)
        self.apply(_initialise)

    def embed(self, k: int, ids: Tensor) -> Tensor:
        """Embedding of sub-token k: (...) int64 -> (..., D)."""
        embedded: Tensor = getattr(self, self.names[k])(ids)
        return embedded

    def embed_token(self, token: Tensor) -> Tensor:
        """Sum of a token's sub-token embeddings: (..., K) int64 -> (..., D)."""
        return torch.stack([self.embed(k, token[..., k]) for k in range(len(self.names))]).sum(0)

    def inter(self, x: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """Inter transformer: (R, T, D) inputs of T positions from `position` on -> (R, T, D).

        A cache holds keys and values of every layer, (L, 2, R, H, S, d) float32.
        """
        return self._run(self.spatial_blocks, self.dropout(x), cache, position)

    def intra(self, x: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """Intra transformer and final norm: (R, T, D) of T sub-positions -> (R, T, D)."""
        normed: Tensor = self.norm(self._run(self.factorized_blocks, x, cache, position))
        return normed

    def _run(self, blocks: nn.ModuleList, x: Tensor, cache: Tensor | None, position: int) -> Tensor:
        rope = self.rope[position : position + x.shape[1]]
        for layer, block in enumerate(blocks):
            x = block(x, rope, None if cache is None else cache[layer], position)
        return x

    def forward(self, class_id: Tensor, tokens: Tensor) -> list[Tensor]:
        """Teacher-forced logits.

        Args:
            class_id: (R) int64 in 0..classes, where `classes` is the unconditional row.
            tokens: (R, N, K) int64.

        Returns:
            K tensors (R, N, V_k): the logits of each sub-token given all that precedes it.
        """
        rows, positions, count = tokens.shape
        first = self.class_emb(class_id)[:, None]
        context = self.inter(torch.cat([first, self.embed_token(tokens[:, :-1])], dim=1))
        parts = [context] + [self.embed(k, tokens[..., k]) for k in range(count - 1)]
        stacked = torch.stack(parts, dim=2).flatten(0, 1)  # (R * N, K, D)
        hidden = self.intra(stacked).view(rows, positions, count, -1)
        return [head(hidden[:, :, k]) for k, head in enumerate(self.head)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
