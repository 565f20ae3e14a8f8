"""How a learning rate changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2kit.training.recipes.settings import RunSettings


def learning_rate(settings: RunSettings, step: int, pictures: int) -> float:
    """The learning rate of a step.

    Args:
        settings: Of the run.
        step: Counted from 0.
        pictures: How many an epoch has.
    """
    rise = settings.in_steps(settings.warm_up, pictures)
    if step < rise:
        share = settings.warm_up_from + (1 - settings.warm_up_from) * step / rise
        return settings.learning_rate * share
    if settings.decay == "drops":
        passed = sum(step >= settings.in_steps(time, pictures) for time in settings.drops)
        return settings.learning_rate * 0.1**passed
    last = settings.in_steps(settings.planned_length, pictures) - 1
    done = min(1.0, (step - rise) / max(1, last - rise))
    left = 1 - max(0.0, done - settings.flat) / max(1e-9, 1 - settings.flat)
    if settings.decay == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return settings.learning_rate * (settings.floor + (1 - settings.floor) * left)


@dataclass(frozen=True, slots=True)
class Corner:
    """Where a schedule turns.

    Attributes:
        what: Happens there.
        step: Counted from 0.
        learning_rate: Of that step.
    """

    what: str
    step: int
    learning_rate: float


def corners(settings: RunSettings, pictures: int) -> tuple[Corner, ...]:
    """The first step, the last one, and those between at which the learning rate turns.

    Args:
        settings: Of the run.
        pictures: How many an epoch has.
    """
    end = settings.in_steps(settings.length, pictures) - 1
    rise = settings.in_steps(settings.warm_up, pictures)
    turns = {0: "start"}
    if rise:
        turns[rise] = "peak"
    if settings.decay == "drops":
        turns |= {settings.in_steps(time, pictures): "drop" for time in settings.drops}
    else:
        last = settings.in_steps(settings.planned_length, pictures) - 1
        if settings.flat:
            turns[rise + math.floor(settings.flat * (last - rise))] = "end of flat"
        turns[last] = "lowest"
    turns[end] = "end"
    return tuple(
        Corner(what, step, learning_rate(settings, step, pictures))
        for step, what in sorted(turns.items())
        if step <= end
    )
