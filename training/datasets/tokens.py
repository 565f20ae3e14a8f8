"""What an autoregressive model trains on: tokens of pictures, encoded once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from m2kit.progress import Begin, silent
from m2kit.training.datasets.crops import Crops, Item
from m2kit.training.datasets.pictures import Pictures
from m2kit.training.models.tokenizer import Tokenizer

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TokenExamples(Dataset[Item]):
    """Tokens (N, K), labels, and READ or the index of an unread picture.

    An item's number is epoch * len(self) + index; the epoch chooses the version.

    Attributes:
        tokens: (n, V, N, K) int64, of V versions of n pictures.
        labels: (n, V) int64.
        replaced: (n, V) READ, or the index of a picture that could not be read.
        pictures: What these are indices of.
        seed: Of the choice of versions.
    """

    tokens: Tensor
    labels: Tensor
    replaced: Tensor
    pictures: Pictures
    seed: int = 0

    def __len__(self) -> int:
        """How many an epoch has."""
        return len(self.tokens)

    def __getitem__(self, number: int) -> Item:
        """The item of a number."""
        epoch, index = divmod(number, len(self))
        random = np.random.default_rng([self.seed, epoch, index])
        version = int(random.integers(self.tokens.shape[1]))
        return (
            self.tokens[index, version],
            self.labels[index, version],
            self.replaced[index, version],
        )

    def in_order(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, N, K) and labels (B) of first versions."""
        for start in range(0, len(self), batch):
            part = slice(start, start + batch)
            yield self.tokens[part, 0], self.labels[part, 0]


@torch.no_grad()
def tokens_of(tokenizer: Tokenizer, images: Tensor, vocabularies: tuple[int, ...]) -> Tensor:
    """(B, N, K) int64 tokens of images (B, 3, H, W) in [-1, 1]."""
    return tokenizer.tokens(tokenizer.codes(images), vocabularies).flatten(1, -2)


def encoded(
    tokenizer: Tokenizer,
    vocabularies: tuple[int, ...],
    crops: Crops,
    versions: int = 1,
    begin: Begin = silent,
) -> TokenExamples:
    """Tokens of a data set's crops.

    Args:
        tokenizer: Encodes, on its device.
        vocabularies: Of the sub-tokens.
        crops: Of the pictures; version v of each is that of epoch v.
        versions: How many there are to be of each.
        begin: Shows how far it is.
    """
    advance = begin("encoding", versions * len(crops))
    device = next(tokenizer.parameters()).device
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    numbers = range(versions * len(crops))
    for start in numbers[::_AT_ONCE]:
        part = numbers[start : start + _AT_ONCE]
        images, labels, replaced = default_collate([crops[number] for number in part])
        tokens = tokens_of(tokenizer, images.to(device), vocabularies)
        parts.append((tokens.cpu(), labels, replaced))
        advance(len(part))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    tokens, labels, replaced = (
        column.view(versions, len(crops), *column.shape[1:]).transpose(0, 1) for column in columns
    )
    return TokenExamples(tokens, labels, replaced, crops.pictures, crops.cut.seed)
