"""What an autoregressive model trains on from a token cache: no picture is read or encoded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2kit.config import ModelSpec
from m2kit.families.sign_bits import bits_of, codes_from_tokens, tokens_from_codes
from m2kit.token_cache import CachedPictures, TokenCache
from m2kit.training.datasets.crops import READ, Item
from m2kit.training.datasets.cut import members_of_groups


class CachedTokens(Dataset[Item]):
    """Tokens (N, K), labels, and READ, of one half of a cache; they stay on the disk.

    An item's number is epoch * len(self) + index; the epoch chooses the crop, as it does among the
    versions of TokenExamples.

    Args:
        cache: Opened.
        pictures: One of its halves.
        spec: Of the model, whose sub-tokens are made of the cache's codes.
        seed: Of the choice of crops.
        one_of_group: An epoch has one picture of every group, another one each time.
    """

    def __init__(
        self,
        cache: TokenCache,
        pictures: CachedPictures,
        spec: ModelSpec,
        *,
        seed: int = 0,
        one_of_group: bool = False,
    ) -> None:
        self.pictures, self._spec, self._seed = pictures, spec, seed
        self._vocabularies, self._bit_order = cache.tokens.vocabularies, cache.tokens.bit_order
        self._crops = cache.making.crops if pictures is cache.train else 1
        self._groups = members_of_groups(pictures.groups) if one_of_group else None

    def __len__(self) -> int:
        """How many an epoch has."""
        return len(self.pictures.labels) if self._groups is None else len(self._groups)

    def __getitem__(self, number: int) -> Item:
        """The item of a number.

        Raises:
            InputError: The cache was changed since it was opened.
        """
        epoch, index = divmod(number, len(self))
        random = np.random.default_rng([self._seed, epoch, index])
        if self._groups is not None:
            index = int(random.choice(self._groups[index]))
        ids = self._ids(index, int(random.integers(self._crops)))
        label = torch.tensor(int(self.pictures.labels[index]))
        return torch.from_numpy(ids), label, torch.tensor(READ)

    def in_order(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, N, K) and labels (B) of the first crops of all pictures."""
        count = len(self.pictures.labels)
        for start in range(0, count, batch):
            part = range(start, min(start + batch, count))
            tokens = np.stack([self._ids(index, 0) for index in part])
            yield torch.from_numpy(tokens), torch.from_numpy(self.pictures.labels[part])

    def _ids(self, index: int, crop: int) -> npt.NDArray[np.int64]:
        """(N, K) in the model's split and bit order."""
        ids = self.pictures.read(index, crop).reshape(-1, len(self._vocabularies))
        spec, order = self._spec, self._spec.tokenizer.bit_order
        if (self._vocabularies, self._bit_order) == (spec.vocabularies, order):
            return ids
        codes = codes_from_tokens(ids[None], bits_of(self._vocabularies), self._bit_order)
        own: npt.NDArray[np.int64] = tokens_from_codes(codes, bits_of(spec.vocabularies), order)[0]
        return own
