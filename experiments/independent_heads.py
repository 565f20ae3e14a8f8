"""An AR model whose sub-tokens do not see each other: what next-sub-token prediction is judged by.

Backbone, heads and number of parameters are m2kit's; every sub-position of the intra transformer
has the context alone as its input, so that all heads read one hidden vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from m2kit.config import TransformerSpec
from m2kit.training.models.transformer import Transformer
from m2kit.training.recipes import ar


class IndependentHeads(Transformer):
    """Sub-tokens of a position are independent, given all positions before it."""

    _context: Tensor

    def intra(self, x: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """(R, T, D) of T sub-positions from `position` on -> (R, T, D), of the first one alone."""
        if position == 0:
            self._context = x[:, :1]
        return super().intra(self._context.expand_as(x), cache, position)


@contextmanager
def independent_heads() -> Iterator[None]:
    """AR runs inside it train this model in place of m2kit's."""
    with patch.object(ar, "Transformer", IndependentHeads):
        yield


def weights_per_position(spec: TransformerSpec) -> int:
    """Weight values that decoding one position needs: the intra transformer once, not K times."""
    again = (spec.sub_tokens - 1) * (spec.intra_layers * spec.layer_parameters + spec.width)
    return spec.weights_per_position - again - (spec.sub_tokens - 1) * spec.width
