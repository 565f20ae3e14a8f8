"""What both trainers share: settings of a run, its folder, and the Lightning trainer.

A run folder holds settings.json, metrics.csv, resume.ckpt (Lightning's, after every epoch),
best.ckpt where a model is chosen by a held-out measure, and at the end the checkpoint in the
official layout, curves.png and samples.png. Every epoch draws its randomness from (seed, epoch),
so a resumed run ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import csv
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from m2kit.errors import FolderError, InputError, M2KitError
from m2kit.folders import new_file
from m2kit.training.checkpoints.writing import save_whole

SETTINGS_FILE = "settings.json"
RESUME_FILE = "resume.ckpt"
BEST_FILE = "best.ckpt"
METRICS_FILE = "metrics.csv"


class EpochShuffle(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone; Lightning calls set_epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed, self._epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """The indices of the epoch, in order."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(torch.randperm(self._size, generator=generator).tolist())

    def __len__(self) -> int:
        """Number of indices."""
        return self._size


def shuffled(*tensors: Tensor, batch: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Training batches; the last, smaller one is left out.

    Raises:
        InputError: There are fewer examples than one batch.
    """
    data = TensorDataset(*tensors)
    check_batch(batch, len(data))
    return DataLoader(data, batch, sampler=EpochShuffle(len(data), seed), drop_last=True)


def check_batch(batch: int, images: int) -> None:
    """Refuse a batch that would leave no step in an epoch.

    Raises:
        InputError: There are fewer images than one batch.
    """
    if batch > images:
        raise InputError(f"--batch {batch} is more than the {images} training images; lower it")


def in_order(*tensors: Tensor, batch: int = 512) -> DataLoader[tuple[Tensor, ...]]:
    """Held-out batches."""
    return DataLoader(TensorDataset(*tensors), batch)


class AveragedModule(lightning.LightningModule):
    """A LightningModule that trains `net` and keeps its exponential moving average in `ema`."""

    def __init__(self, net: nn.Module, ema_decay: float, seed: int) -> None:
        super().__init__()
        self.net = net
        self.ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        self._seed = seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw an epoch's randomness (dropout, class dropout) from (seed, epoch).

        Not in on_train_epoch_start: the loader draws from the same generator after that.
        """
        if batch_idx == 0:
            torch.manual_seed(self._seed * 1_000_003 + self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after each optimizer step; stop where the loss is no number."""
        if not torch.isfinite(outputs["loss"]):
            raise M2KitError(
                f"training diverged in epoch {self.current_epoch + 1}: the loss is "
                f"{outputs['loss'].item()}; start again with a lower --learning-rate"
            )
        self.ema.update_parameters(self.net)


class WholeFiles(TorchCheckpointIO):
    """Saves a checkpoint whole or not at all: a full disk leaves the last epoch's file intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save beside `path`, then rename."""
        save_whole(checkpoint, Path(path))


class MetricsLog(Callback):
    """Writes metrics.csv: one row an epoch, with everything the module logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Take over the rows of the epochs before a resume."""
        rows = read_metrics(self._path) if self._path.is_file() else []
        self._rows = [row for row in rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Add the epoch's row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._rows.append({"epoch": trainer.current_epoch, **values})
        with new_file(self._path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self._rows[-1]))
            writer.writeheader()
            writer.writerows(self._rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def warm_up_then_linear(
    optimizer: torch.optim.Optimizer, warm_up: int, steps: int, floor: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate: linear from 0 over `warm_up` steps, then linear to `floor` times the peak."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 1 - (1 - floor) * min(1.0, (step - warm_up) / max(1, steps - warm_up))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def open_run(folder: Path, settings: Any, resume: bool) -> Path | None:
    """Prepare a run folder; returns the file to resume from, if any.

    Raises:
        InputError: The folder holds a run and `resume` was not asked for, or other settings.
        FolderError: The folder cannot be written.
    """
    stored = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(asdict(settings)))
    if stored.is_file():
        if not resume:
            raise InputError(
                f"{folder} already holds a training run; add --resume to go on with it, "
                "or choose another folder with -o"
            )
        try:
            found = dict(json.loads(stored.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{stored} is damaged; start again in another folder (-o)") from error
        changed = sorted(name for name in wanted if found.get(name) != wanted[name])
        if changed:
            raise InputError(
                f"{folder} was started with other settings: "
                + ", ".join(f"{n} {found.get(n)} (now {wanted[n]})" for n in changed)
                + "; repeat them, or choose another folder with -o"
            )
    elif resume:
        raise InputError(f"{folder} holds no run to resume; leave out --resume to start one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with -o"
        ) from error
    with new_file(stored) as path:
        path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    checkpoint = folder / RESUME_FILE
    if not checkpoint.is_file():
        return None
    if not zipfile.is_zipfile(checkpoint):
        raise InputError(f"{checkpoint} is damaged; start again in another folder (-o)")
    return checkpoint


def load_best(folder: Path) -> dict[str, Any]:
    """The content of best.ckpt.

    Raises:
        InputError: It is missing or damaged.
    """
    path = folder / BEST_FILE
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is missing or damaged; start again in another folder (-o)")
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return content


def fit(
    module: AveragedModule,
    train: DataLoader[Any],
    held_out: DataLoader[Any],
    *,
    epochs: int,
    folder: Path,
    resume_from: Path | None,
    choose_by: str | None,
    progress: bool,
) -> None:
    """Train to the end; metrics.csv, resume.ckpt and best.ckpt appear in the run folder.

    Args:
        module: What to train.
        train: Training batches.
        held_out: Held-out batches, run after every epoch.
        epochs: Epochs in all, those before a resume included.
        folder: The run folder.
        resume_from: A resume.ckpt, or None.
        choose_by: Logged measure whose smallest value chooses best.ckpt, or None.
        progress: Show a progress bar.
    """
    # The best model before the resume file, which records what was best so far.
    wanted = [(BEST_FILE, choose_by)] if choose_by else []
    callbacks: list[Any] = [MetricsLog(folder / METRICS_FILE)] + [
        ModelCheckpoint(
            folder,
            Path(name).stem,
            monitor=monitor,
            save_weights_only=monitor is not None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        for name, monitor in [*wanted, (RESUME_FILE, None)]
    ]
    if progress:
        callbacks.append(RichProgressBar())
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            plugins=[WholeFiles()],
        )
        try:
            trainer.fit(module, train, held_out, ckpt_path=resume_from, weights_only=True)
        except SystemExit as error:  # how Lightning ends a run on Ctrl-C
            if not trainer.interrupted:
                raise
            raise M2KitError(
                f"interrupted; {folder} holds the run: add --resume to go on with it"
            ) from error
