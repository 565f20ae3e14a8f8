"""The order in which a run sees its examples: a function of the seed and the step alone, so that a
run can go on anywhere and as many processes as there are see the same batches.

Examples form one endless row: each epoch's permutation after the other. A step takes the next
`batch` of them, whichever epochs they are of; so every example is seen once an epoch, and all
batches are of one size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from m2kit.training.recipes.division import Division


class TrainingBatches(Sampler[list[int]]):
    """Item numbers (epoch * examples + index) of this process's parts, from a step to the end.

    Args:
        examples: How many an epoch has.
        division: How batches are divided.
        steps: The first step, counted from 0, and the one after the last.
        seed: Of the order.
    """

    def __init__(self, examples: int, division: Division, steps: range, seed: int) -> None:
        self._examples, self._division, self._steps, self._seed = examples, division, steps, seed

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._steps) * self._division.parts

    def __iter__(self) -> Iterator[list[int]]:
        """The parts of each step."""
        of, epoch, order = self._division, -1, torch.empty(0)
        for step in self._steps:
            for part in range(of.parts):
                start = step * of.batch + (part * of.processes + of.rank) * of.size
                numbers = []
                for place in range(start, start + of.size):
                    if place // self._examples != epoch:
                        epoch = place // self._examples
                        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
                        order = torch.randperm(self._examples, generator=generator)
                    numbers.append(epoch * self._examples + int(order[place % self._examples]))
                yield numbers


class HeldOutBatches(Sampler[list[int]]):
    """Indices in order, divided among processes so that each has as many batches as the others:
    the last ones begin again at 0, which `counted` tells.

    Args:
        examples: How many there are.
        division: How they are divided.
    """

    def __init__(self, examples: int, division: Division) -> None:
        self._examples, self._division = examples, division

    def __len__(self) -> int:
        """How many batches a process has."""
        return -(-self._examples // (self._division.size * self._division.processes))

    def _start(self, index: int) -> int:
        return (index * self._division.processes + self._division.rank) * self._division.size

    def __iter__(self) -> Iterator[list[int]]:
        """The batches."""
        for index in range(len(self)):
            start = self._start(index)
            yield [place % self._examples for place in range(start, start + self._division.size)]

    def counted(self, index: int) -> int:
        """How many examples of a batch, its first ones, no other batch has."""
        return max(0, min(self._division.size, self._examples - self._start(index)))
