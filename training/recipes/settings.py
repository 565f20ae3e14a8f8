"""What the settings of a run may be: a range for each field, which holds alike for the command
line, for a settings.json and for Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from m2kit.errors import InputError
from m2kit.records import Range, Text, checked_fields

Number = Annotated[int, Range(1, 1_000_000)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(1e-9, 1e6)]
Weight = Annotated[float, Range(0, 1e6)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1 - 1e-9)]  # at 1 an average would stay what it was


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every run has; each recipe adds its own.

    Attributes:
        data: Name of the data set.
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: The schedule's peak.
        ema_decay: Of the weights' moving average, per step.
        seed: Of initial weights, order and dropout.
        schedule_epochs: Epochs over which the learning rate changes, where a resumed run was given
            more: from there on it stays at its lowest. None is all of them.
    """

    data: Text
    epochs: Number
    batch: Number
    learning_rate: Positive
    ema_decay: Decay
    seed: Seed
    schedule_epochs: Number | None = None

    @property
    def epochs_of_schedule(self) -> int:
        """Epochs over which the learning rate changes."""
        return self.schedule_epochs or self.epochs

    def __post_init__(self) -> None:
        """Refuse a field that is of another type, out of range, or no finite number."""
        for name, value in checked_fields(self, "", InputError).items():
            object.__setattr__(self, name, value)
