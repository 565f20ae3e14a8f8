"""What the settings of a run may be: a range for each field, which holds alike for the command
line, for a settings.json and for Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from m2kit.errors import InputError
from m2kit.records import Range, Text, checked_fields

Number = Annotated[int, Range(1, 2_000_000_000)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(1e-9, 1e9)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1 - 1e-9)]  # at 1 an average would stay what it was


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every run has; each recipe adds its own.

    The learning rate rises linearly to its peak, stays there, and then falls, as decay says. All
    times are in epochs, or in steps where the run's length is.

    Attributes:
        data: Name or path of the data set.
        size: Height and width of the images in pixels; None is the pictures' own.
        place: Where training crops are taken.
        flip: Mirror every second training image.
        warp: How much training images are turned, scaled and moved at random, 1 a little.
        one_of_group: An epoch has one picture of each group (such as the skin tones of one emoji).
        epochs: Passes over the training pictures, where `steps` is None.
        steps: Optimizer steps in all.
        batch: Images per step, over all processes.
        learning_rate: The schedule's peak.
        warm_up: Until the peak is reached.
        warm_up_from: The learning rate's first value, as a share of its peak.
        flat: Share of the time after the warm-up at the peak, before a linear or cosine fall.
        decay: How it falls: a line or a half cosine down to `floor`, or to a tenth at each drop.
        floor: The learning rate's last value, as a share of its peak.
        drops: When it falls to a tenth, and a tenth of that.
        clip: Greatest norm of the gradients; 0 is none.
        ema_decay: Of the weights' moving average, per step; 0 keeps no average.
        seed: Of initial weights, order, crops and dropout.
        schedule_length: Epochs or steps over which the learning rate changes, where a resumed run
            was given more: from there on it stays at its lowest. None is all of them.
        log_every: Steps between two rows of metrics.csv.
        validate_every: Steps between two measurements on held-out pictures; None is an epoch.
    """

    data: Text
    size: Number | None = None
    place: Literal["random", "centre"] = "random"
    flip: bool = False
    warp: Share = 0.0
    one_of_group: bool = False
    epochs: Number
    steps: Number | None = None
    batch: Number
    learning_rate: Positive
    warm_up: Weight = 0.0
    warm_up_from: Share = 0.0
    flat: Share = 0.0
    decay: Literal["linear", "cosine", "drops"] = "linear"
    floor: Share = 0.1
    drops: tuple[Positive, ...] = ()
    clip: Weight = 0.0
    ema_decay: Decay
    seed: Seed
    schedule_length: Number | None = None
    log_every: Number = 50
    validate_every: Number | None = None

    @property
    def length(self) -> int:
        """Epochs, or steps where the run is so long."""
        return self.steps or self.epochs

    @property
    def planned_length(self) -> int:
        """Epochs or steps over which the learning rate changes."""
        return self.schedule_length or self.length

    def in_steps(self, time: float, pictures: int) -> int:
        """A time in epochs or steps, of so many training pictures, in steps."""
        return round(time) if self.steps else round(time * pictures / self.batch)

    def __post_init__(self) -> None:
        """Refuse a field that is of another type, out of range, or no finite number."""
        for name, value in checked_fields(self, "", InputError).items():
            object.__setattr__(self, name, value)
