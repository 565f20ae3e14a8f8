"""What every recipe trains: a network, and the moving average of its weights; and how its learning
rate changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from m2kit.errors import M2KitError

Net = TypeVar("Net", bound=nn.Module)


class Diverged(M2KitError):
    """A loss or a measure became NaN or infinite; what is trained is worth nothing any more."""


def require_finite(values: Mapping[str, float], where: str) -> None:
    """Refuse losses that are no numbers.

    Raises:
        Diverged: Names each, and where in the training it was.
    """
    odd = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if odd:
        raise Diverged(f"training diverged in {where}: {', '.join(odd)}")


class AveragedModule(lightning.LightningModule, Generic[Net]):
    """A LightningModule that trains `net` and keeps its exponential moving average in `ema`.

    Its training_step gives the loss, or a dict of it ("loss") and of what it is the sum of.
    """

    net: Net

    def __init__(self, net: Net, ema_decay: float, seed: int) -> None:
        super().__init__()
        self.net = net
        average = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(net, multi_avg_fn=average)
        self._seed = seed

    @property
    def averaged(self) -> Net:
        """The network with the averaged weights."""
        return cast("Net", self.ema.module)

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """A new optimizer of `net`, and its schedule, which advances with every step."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The same, as Lightning asks for it."""
        optimizer, schedule = self.optimizer()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw an epoch's randomness (dropout, class dropout) from (seed, epoch).

        Not in on_train_epoch_start: the loader draws from the same generator after that.
        """
        if batch_idx == 0:
            torch.manual_seed(self._seed * 1_000_003 + self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after each optimizer step; stop where a loss is no number.

        Raises:
            Diverged: Names what training_step gave that is not finite.
        """
        values = {name: value.item() for name, value in outputs.items()}
        require_finite(values, f"epoch {self.current_epoch + 1}, step {batch_idx + 1}")
        self.ema.update_parameters(self.net)


def warm_up_then_linear(
    optimizer: torch.optim.Optimizer, warm_up: int, steps: int, floor: float
) -> LambdaLR:
    """Learning rate: linear from 0 over `warm_up` steps, then linear to `floor` times the peak."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 1 - (1 - floor) * min(1.0, (step - warm_up) / max(1, steps - warm_up))

    return LambdaLR(optimizer, factor)
