"""How the learning rate changes over a run."""

from __future__ import annotations

import torch


def warm_up_then_linear(
    optimizer: torch.optim.Optimizer, warm_up: int, steps: int, floor: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate: linear from 0 over `warm_up` steps, then linear to `floor` times the peak."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 1 - (1 - floor) * min(1.0, (step - warm_up) / max(1, steps - warm_up))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
