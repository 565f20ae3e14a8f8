"""How a learning rate changes over a run."""

from __future__ import annotations

import math

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
