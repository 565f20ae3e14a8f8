"""One network that a recipe trains, with its optimizer and the moving average of its weights; and
what a recipe is: its phases, which take their steps one after the other."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Net = TypeVar("Net", bound=nn.Module)
Batch = Sequence[Tensor]
Losses = dict[str, Tensor]  # "loss", and what it is the sum of; scalars
Step = Callable[[int, Batch], Losses]  # of a step, counted from 0, and a part of its batch
Gathered = Callable[[Any], list[Any]]  # of a process's value: those of all processes
Panels = Mapping[str, Sequence[str]]  # title of a y axis -> the measures drawn in that panel


class Phase(Generic[Net]):
    """A network, its optimizer and its average.

    Args:
        name: In resume files and messages.
        network: What is trained.
        losses: Of a part of a batch.
        optimizer: Makes it of the network, when that is where it is to be.
        ema_decay: Of the average, per step; 0 keeps it like the network.
        clip: Greatest norm of the gradients; 0 is none.
        begins: The first step that it takes, counted from 0.
    """

    def __init__(
        self,
        name: str,
        network: Net,
        losses: Step,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        ema_decay: float,
        clip: float = 0.0,
        begins: int = 0,
    ) -> None:
        self.name, self.network, self.losses = name, network, losses
        self.clip, self.begins = clip, begins
        average = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(network, multi_avg_fn=average)
        self.make_optimizer = optimizer
        self.optimizer: Any = None  # made when the network is placed
        self.forward: Any = network  # what processes share gradients through
        self.autocast: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def averaged(self) -> Net:
        """The network with the averaged weights."""
        return cast("Net", self.ema.module)

    def judge(self, *inputs: Tensor) -> Tensor:
        """What the network makes of inputs, through which gradients pass and none stays in it."""
        self.network.requires_grad_(requires_grad=False)
        try:
            with self.autocast():
                result: Tensor = self.network(*inputs)
        finally:
            self.network.requires_grad_(requires_grad=True)
        return result.float() if result.dtype in (torch.bfloat16, torch.float16) else result


class Recipe(ABC):
    """What a run trains, and how it is measured.

    Attributes:
        phases: In the order of their steps.
        statistics: What is kept from step to step and not trained; saved with the run.
        panels: All that it logs, as curves.png draws it.
        columns: Of samples.png.
        shown: Held-out examples that it is made of.
        remark: What is to be told of the last measurement, beside its numbers.
    """

    phases: Sequence[Phase[Any]]
    statistics: nn.Module
    panels: Panels
    columns: int
    shown: int
    remark: str = ""

    @abstractmethod
    def measure(self, batch: Batch, counted: int) -> Losses:
        """Held-out measures of the averaged networks, named held_out_*: (B) each, of which the
        first `counted` count; the others repeat what another batch has."""

    def summary(self, gathered: Gathered) -> dict[str, float]:
        """Held-out measures that are no means over images, of the batches measured since the last
        call, in all processes."""
        return {}

    @abstractmethod
    def samples(self, held_out: Batch) -> npt.NDArray[np.float32] | None:
        """What is to be looked at while it trains: images (n, 3, H, W) float32 in [-1, 1], of
        `shown` held-out examples, in rows of `columns`; None where it cannot be made."""
