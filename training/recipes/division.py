"""How a batch is divided among processes and their parts, and what cannot be. Nothing here imports
torch: the command line checks it first."""

from __future__ import annotations

from dataclasses import dataclass

from m2kit.errors import InputError


@dataclass(frozen=True, slots=True)
class Division:
    """How a batch is divided.

    Attributes:
        batch: Examples of a step, over all processes.
        parts: Parts that a process computes one after the other, before it takes the step.
        rank: Of this process.
        processes: How many there are.
    """

    batch: int
    parts: int = 1
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be divided."""
        if self.batch % (self.processes * self.parts):
            raise InputError(
                f"a batch of {self.batch} cannot be divided among {self.processes} processes of "
                f"{self.parts} parts each; choose a multiple of {self.processes * self.parts}",
                option="--batch, --accumulate, --devices",
            )

    @property
    def size(self) -> int:
        """Examples of a part."""
        return self.batch // (self.processes * self.parts)


def check_batch(batch: int, pictures: int) -> None:
    """Refuse a batch of more than an epoch.

    Raises:
        InputError: There are fewer pictures than one batch.
    """
    if batch > pictures:
        raise InputError(
            f"a batch of {batch} is more than the {pictures} training examples; lower it",
            option="--batch",
        )
