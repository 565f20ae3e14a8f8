"""The order in which a run sees its examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from m2kit.errors import InputError


class EpochShuffle(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone; Lightning calls set_epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed, self._epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """The indices of the epoch, in order."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(torch.randperm(self._size, generator=generator).tolist())

    def __len__(self) -> int:
        """Number of indices."""
        return self._size


def shuffled(*tensors: Tensor, batch: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Training batches; the last, smaller one is left out.

    Raises:
        InputError: There are fewer examples than one batch.
    """
    data = TensorDataset(*tensors)
    check_batch(batch, len(data))
    return DataLoader(data, batch, sampler=EpochShuffle(len(data), seed), drop_last=True)


def check_batch(batch: int, images: int) -> None:
    """Refuse a batch that would leave no step in an epoch.

    Raises:
        InputError: There are fewer images than one batch.
    """
    if batch > images:
        raise InputError(
            f"a batch of {batch} is more than the {images} training images; lower it",
            option="--batch",
        )


def in_order(*tensors: Tensor, batch: int = 512) -> DataLoader[tuple[Tensor, ...]]:
    """Held-out batches."""
    return DataLoader(TensorDataset(*tensors), batch)
