"""The training loop that all recipes share, on Lightning Fabric.

A step's examples, dropout and crops depend on the seed and the step alone, so a run that was
stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import default_collate

from m2kit.errors import M2KitError, TrainingInterrupted
from m2kit.progress import Begin, silent
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.saving import write_grid
from m2kit.training.checkpoints.writing import save_whole
from m2kit.training.datasets.crops import READ
from m2kit.training.recipes.batches import HeldOutBatches, TrainingBatches
from m2kit.training.recipes.loading import loaded
from m2kit.training.recipes.machine import Machine, place
from m2kit.training.recipes.metrics import MetricsLog, measures, plot_curves
from m2kit.training.recipes.phase import Batch, Phase, Recipe
from m2kit.training.recipes.processes import gathered, mean_over_processes, over_processes
from m2kit.training.recipes.run_folder import (
    BEST_FILE,
    CURVES_FILE,
    METRICS_FILE,
    RESUME_FILE,
    SAMPLES_FILE,
)
from m2kit.training.recipes.saved_state import (
    read_best,
    read_resume,
    restore,
    scaler_of,
    state_of,
    weights_of,
)
from m2kit.training.recipes.schedule import learning_rate
from m2kit.training.recipes.settings import RunSettings
from m2kit.training.recipes.unread import Unread

Tell = Callable[[str], None]
_RATE = "learning_rate"


@dataclass(slots=True)
class _Counts:
    """Sums over the steps since the last row, and of how many, the same in all processes; they are
    saved with the run."""

    names: list[str]
    sums: Tensor
    steps: list[int]

    @classmethod
    def of(cls, names: list[str]) -> _Counts:
        """None yet."""
        return cls(names, torch.zeros(len(names), dtype=torch.float64), [0] * len(names))

    def add(self, values: Mapping[str, float]) -> None:
        """Add a step; the norm of gradients that overflow in fp16 is left out, as the step is. The
        learning rate is that of the last step, no mean."""
        for index, name in enumerate(self.names):
            value = values.get(name, 0.0)  # 0 where a phase has not begun
            if name == _RATE:
                self.sums[index], self.steps[index] = value, 1
            elif math.isfinite(value):
                self.sums[index] += value
                self.steps[index] += 1

    def take(self) -> dict[str, float]:
        """Means over the steps that have a number, and begin anew."""
        taken = zip(self.names, self.sums.tolist(), self.steps, strict=True)
        means = {name: total / steps for name, total, steps in taken if steps}
        self.sums, self.steps = torch.zeros_like(self.sums), [0] * len(self.names)
        return means


@dataclass(slots=True)
class Run:
    """A run in its folder.

    Attributes:
        recipe: What it trains.
        settings: How.
        machine: Where.
        fabric: Launched.
        folder: The run folder.
        train: Training examples: a tuple of tensors each, the last one READ or the index of an
            unread picture.
        held_out: Held-out examples, alike.
        choose_by: The measure whose smallest value chooses best.ckpt, or None.
        begin: Shows how far it is.
        tell: Called with a line at each measurement.
        unread: The pictures that could not be read.
    """

    recipe: Recipe
    settings: RunSettings
    machine: Machine
    fabric: Fabric
    folder: Path
    train: Any
    held_out: Any
    choose_by: str | None = None
    begin: Begin = silent
    tell: Tell = lambda text: None
    unread: Unread = field(default_factory=Unread)
    _best: dict[str, Any] = field(default_factory=lambda: {"step": 0, "value": 0.0})

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.settings.in_steps(self.settings.length, len(self.train))

    def fit(self, resume_from: Path | None) -> None:
        """Train to the end; metrics.csv, resume.ckpt, best.ckpt, samples.png and curves.png appear.

        Args:
            resume_from: A resume.ckpt, or None.

        Raises:
            InputError: A file of the run to go on with is damaged or of another run.
            M2KitError: Training diverged.
            TrainingInterrupted: The user or the system stopped it; resume.ckpt holds it.
        """
        for phase in self.recipe.phases:
            place(self.fabric, phase, self.machine)
        self.recipe.statistics.to(self.fabric.device)
        panels = self.recipe.panels
        held_out = self._held_out_names()
        names = [name for name in measures(panels) if name not in held_out]
        counts = _Counts.of(names)
        done = self._restore(resume_from, counts) if resume_from else 0
        first = self.fabric.is_global_zero
        log = MetricsLog(self.folder / METRICS_FILE, panels, done) if first else None
        division = self.machine.division(self.settings.batch, self.fabric)
        steps = range(done, self.steps)
        batches = TrainingBatches(len(self.train), division, steps, self.settings.seed)
        try:
            with _heeding_signals() as stop, self._loaded(self.train, batches) as loader:
                self._steps_from(done, counts, log, loader, stop)
        finally:
            if log is not None:
                log.close()
        if first:
            plot_curves(self.folder / METRICS_FILE, self.folder / CURVES_FILE, panels)
        self.unread.share(self.fabric)

    def _held_out_names(self) -> set[str]:
        return {name for name in measures(self.recipe.panels) if name.startswith("held_out_")}

    def _loaded(self, data: Any, batches: Any) -> AbstractContextManager[Iterator[Any]]:
        return loaded(data, batches, self.machine.workers)

    def _steps_from(
        self,
        done: int,
        counts: _Counts,
        log: MetricsLog | None,
        loader: Iterator[Any],
        stop: dict[str, str],
    ) -> None:
        division = self.machine.division(self.settings.batch, self.fabric)
        validate_every = self.settings.validate_every or max(
            1, round(len(self.train) / self.settings.batch)
        )
        save_every = self.machine.save_every or validate_every
        advance = self.begin("training", self.steps)
        advance(done)
        for step in range(done, self.steps):
            seed = (self.settings.seed * 1_000_003 + step) * 8191 + division.rank
            torch.manual_seed(seed % 2**63)  # torch takes no more bits
            parts = [self._here(next(loader), self.train) for _ in range(division.parts)]
            counts.add(self._step(step, parts))
            done, advanced = step + 1, step + 1 == self.steps
            validates = advanced or done % validate_every == 0
            if validates or done % self.settings.log_every == 0:
                row = counts.take()
                if validates:
                    row |= self._measure()
                self._require_finite(step, row, {})
                self._log(log, done, row, validates=validates)
            stopped = self._any(bool(stop))
            if validates or stopped or done % save_every == 0:
                self._save(done, counts)
            if stopped and not advanced:
                raise TrainingInterrupted(
                    f"interrupted after step {done} of {self.steps}; {self.folder} holds the run: "
                    "resume it to go on with it",
                    option="--resume",
                )
            advance(1)

    def _step(self, step: int, parts: list[Batch]) -> dict[str, float]:
        """Take a step of every phase; what it logs, means over the parts and processes.

        Raises:
            M2KitError: A loss, or the gradients' norm, is no number.
        """
        rate = learning_rate(self.settings, step, len(self.train))
        values: dict[str, float] = {_RATE: rate}
        norms: dict[str, float] = {}
        phases = [phase for phase in self.recipe.phases if step >= phase.begins]
        for phase in phases:
            phase.network.train()
            found: dict[str, float] = {}
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                with self.fabric.no_backward_sync(phase.forward, enabled=not last):
                    losses = phase.losses(step, part)
                    self.fabric.backward(losses.pop("loss") / len(parts))
                for name, loss in losses.items():
                    found[name] = found.get(name, 0.0) + loss.item() / len(parts)
            for name, value in mean_over_processes(self.fabric, found).items():
                values[name] = values.get(name, 0.0) + value
            norms[phase.name] = self._clip(phase)
            self._require_finite(step, values, norms)
            for group in phase.optimizer.param_groups:
                group["lr"] = rate
            phase.optimizer.step()
            phase.optimizer.zero_grad()
        for phase in phases:
            phase.ema.update_parameters(phase.network)
        return values | {f"{name}_gradient_norm": norm for name, norm in norms.items()}

    def _clip(self, phase: Phase[Any]) -> float:
        """Clip the gradients, which all processes share, and give their norm before."""
        norm = self.fabric.clip_gradients(
            phase.forward,
            phase.optimizer,
            max_norm=phase.clip or math.inf,
            error_if_nonfinite=False,
        )
        assert norm is not None
        whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return whole.item()

    def _require_finite(
        self, step: int, values: Mapping[str, float], norms: Mapping[str, float]
    ) -> None:
        scaled = self.machine.precision == "fp16"  # the scaler leaves out a step that overflows
        odd = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if not odd and (scaled or all(math.isfinite(norm) for norm in norms.values())):
            return
        shown = ", ".join(f"{name} {norm:.4g}" for name, norm in norms.items())
        gradients = f"; norms of the gradients: {shown}" if shown else ""
        resume = self.folder / RESUME_FILE
        kept = f"{resume} is as it was before" if resume.exists() else "nothing was saved yet"
        raise M2KitError(
            f"training diverged in step {step + 1}: {', '.join(odd) or 'all losses are numbers'}"
            f"{gradients}; {kept}; start again with a lower learning rate in another folder",
            option="--learning-rate, -o",
        )

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        """Means over all held-out examples, and what the recipe sums up of them."""
        division = self.machine.division(self.settings.batch, self.fabric)
        batches = HeldOutBatches(len(self.held_out), division)
        sums: dict[str, Tensor] = {}
        for phase in self.recipe.phases:
            phase.averaged.eval()
        with self._loaded(self.held_out, batches) as loader:
            for index, batch in enumerate(loader):
                counted = batches.counted(index)
                found = self.recipe.measure(self._here(batch, self.held_out), counted)
                for name, values in found.items():
                    sums[name] = sums.get(name, 0) + values[:counted].double().sum().cpu()
        means = over_processes(self.fabric, torch.stack([*sums.values()])) / len(self.held_out)
        summary = self.recipe.summary(partial(gathered, self.fabric))
        return dict(zip(sums, means.tolist(), strict=True)) | summary

    def _log(
        self, log: MetricsLog | None, done: int, row: dict[str, float], *, validates: bool
    ) -> None:
        epoch = done * self.settings.batch / len(self.train)
        value = row.get(self.choose_by or "")
        if value is not None and not (self._best["step"] and value >= self._best["value"]):
            self._best = {"step": done, "value": value}
            weights = weights_of(self.recipe)
            if log is not None:
                save_whole({"best": self._best, "weights": weights}, self.folder / BEST_FILE)
        if log is not None:
            log.add(done, epoch, row)
        if validates:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            self.tell(
                f"step {done} of {self.steps}, epoch {epoch:.1f}: {shown}{self.recipe.remark}"
            )
            self._draw(log, done)

    @torch.no_grad()
    def _draw(self, log: MetricsLog | None, done: int) -> None:
        """samples.png, of the first held-out examples; the first process writes it, and the others
        help where it needs their weights."""
        if log is None and self.machine.strategy != "sharded":
            return
        items = [self.held_out[index % len(self.held_out)] for index in range(self.recipe.shown)]
        batch = self._here(default_collate(items), self.held_out)
        images = self.recipe.samples(batch)
        if log is not None and images is not None:
            write_grid(self.folder / SAMPLES_FILE, images, columns=self.recipe.columns)
            log.add_images("samples", uint8_from_images(images), done)

    def _here(self, batch: Any, data: Any) -> Batch:
        """A batch on this process's device; notes the pictures that could not be read."""
        *tensors, replaced = batch
        if (replaced != READ).any():  # never of clips, whose films were looked through before
            self.unread.note(data.pictures, replaced)
        kind = next(self.recipe.phases[0].network.parameters()).dtype
        return [
            t.to(self.fabric.device, dtype=kind if t.is_floating_point() else None) for t in tensors
        ]

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(over_processes(self.fabric, torch.tensor(float(here))) > 0)

    def _state(self, done: int, counts: _Counts) -> dict[str, Any]:
        return {
            "step": done,
            "recipe": state_of(self.fabric, self.recipe),
            "best": dict(self._best),
            "sums": counts.sums,
            "summed": counts.steps,
            "scaler": scaler_of(self.fabric),
            "unread": self.unread.text,
        }

    def _save(self, done: int, counts: _Counts) -> None:
        self.unread.share(self.fabric)
        state = self._state(done, counts)
        if self.fabric.is_global_zero:
            save_whole(state, self.folder / RESUME_FILE)
        self.fabric.barrier()

    def _restore(self, path: Path, counts: _Counts) -> int:
        """Take over the state of a run, which the first process reads; the steps that it had
        done."""
        expected, best = self._state(0, counts), self.best_like()
        found: Mapping[str, Any] = {}
        if self.fabric.is_global_zero:
            found = read_resume(path, expected, self.steps)
            if self.choose_by and found["best"]["step"]:
                read_best(self.folder / BEST_FILE, best)
        kept = {name: value for name, value in found.items() if name != "recipe"}
        kept = self.fabric.broadcast(kept)
        counts.sums, counts.steps = kept["sums"].clone(), kept["summed"]
        self._best = kept["best"]
        self.fabric.strategy.precision.load_state_dict(kept["scaler"])
        self.unread.restore(kept["unread"])
        restore(self.fabric, self.recipe, found.get("recipe", {}), kept["step"])
        return int(kept["step"])

    def best_like(self) -> dict[str, Any]:
        """What a best.ckpt is like; every process must ask, and the first one is told."""
        return {"best": {"step": 0, "value": 0.0}, "weights": weights_of(self.recipe)}


@contextlib.contextmanager
def _heeding_signals() -> Iterator[dict[str, str]]:
    """Notes SIGINT and SIGTERM, so that a step can end and be saved; a second SIGINT does what it
    did before. Schedulers and torchrun send SIGTERM twice within a moment: no user is behind it."""
    noted: dict[str, str] = {}
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heed(number: int, _: Any) -> None:
        noted["signal"] = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, heed)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
