"""A recipe of two small networks on numbers, for tests of the training loop and its files."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import torch
from lightning.fabric.plugins.precision.amp import MixedPrecision
from torch import nn

from m2kit.training.recipes.loop import Run
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.phase import Phase, Recipe
from m2kit.training.recipes.settings import RunSettings

PANELS = {
    "losses": ["square", "odd", "held_out_square"],
    "gradients": ["first_gradient_norm", "second_gradient_norm"],
    "learning rate": ["learning_rate"],
}


class Numbers(torch.utils.data.Dataset):
    """So many examples, (2) each; the unread ones, index -> name, are told as a picture that was
    replaced is."""

    def __init__(self, count, unread=MappingProxyType({})):
        self.count, self.unread = count, dict(unread)
        self.pictures = SimpleNamespace(name=self.unread.get)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        index = number % self.count
        crop = torch.randn(2, generator=torch.Generator().manual_seed(number))
        replaced = index if index in self.unread else -1
        return crop, torch.tensor(index % 3), torch.tensor(replaced)


class Statistics(nn.Module):
    """A mean that is kept from step to step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))


class TwoPhases(Recipe):
    """The second network takes what the first one has made, from its fourth step on.

    Args:
        at: Called with the step and the phase's name in each of their parts; what it gives is
            added to the loss. It may raise, or send a signal.
        measured: The held-out measure after so many steps, where it is not what it is.
        width: Of the first network.
        optimizer: Its class.
    """

    columns = shown = 2
    panels = PANELS

    def __init__(
        self, at=lambda step, name: 0.0, *, measured=None, width=3, optimizer=torch.optim.Adam
    ):
        torch.manual_seed(0)
        self.at, self.measured, self.step = at, measured or {}, 0
        self.statistics = Statistics()
        first = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.3), nn.Linear(width, 2))
        self.first = Phase(
            "first", first, self._first_losses, self._made(optimizer), ema_decay=0.5, clip=0.1
        )
        self.second = Phase(
            "second", nn.Linear(2, 1), self._second_losses, self._made(torch.optim.Adam),
            ema_decay=0.5, begins=3,
        )  # fmt: skip
        self.phases = [self.first, self.second]
        self.passed = []

    def _made(self, optimizer):
        return lambda network: optimizer(network.parameters(), 0.01)

    def _first_losses(self, step, batch):
        self.step, (crop, label) = step, batch
        made = self.first.forward(crop)
        self.statistics.mean.lerp_(made.detach().mean(), 0.1)
        self.passed.append(made.detach() + self.statistics.mean)
        square = (made - label[:, None]).square().mean()
        if step >= self.second.begins:
            square = square - 0.1 * self.second.judge(made).mean()
        odd = square * 0 + self.at(step, "first")
        return {"square": square, "odd": odd, "loss": square + odd}

    def _second_losses(self, step, _):
        if step == self.second.begins:
            del self.passed[:-2]  # of this step
        odd = self.second.forward(self.passed.pop(0)).mean() + self.at(step, "second")
        return {"odd": odd, "loss": odd.square()}

    def measure(self, batch, counted):
        crop, label = batch
        value = (self.first.averaged(crop) - label[:, None]).square().mean(1)
        if self.step + 1 in self.measured:
            value = torch.full_like(value, self.measured[self.step + 1])
        return {"held_out_square": value}

    def samples(self, held_out):
        return None


def fit(folder, recipe=None, *, train=None, save_every=None, precision="fp32", **changes):
    """Train in a folder, on from its resume.ckpt if there is one; gives what was told. fp16 is as
    on a GPU, which Lightning would not do on a CPU."""
    values = {
        "data": "x", "epochs": 4, "batch": 4, "learning_rate": 0.01, "ema_decay": 0.5, "seed": 3,
        "log_every": 2, "validate_every": 5,
    }  # fmt: skip
    machine = Machine(accelerator="cpu", accumulate=2, save_every=save_every, precision=precision)
    fabric = machine.fabric()
    if precision == "fp16":
        fabric._precision = fabric.strategy.precision = MixedPrecision("16-mixed", "cpu")
    fabric.launch()
    resume, told = folder / "resume.ckpt", []
    run = Run(
        recipe or TwoPhases(), RunSettings(**values | changes), machine, fabric, folder,
        train or Numbers(12), Numbers(7), choose_by="held_out_square", tell=told.append,
    )  # fmt: skip
    run.fit(resume if resume.exists() else None)
    run.unread.tell(told.append)
    return told
