"""The training loop that all recipes share.

Every epoch draws its randomness from (seed, epoch), so a resumed run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from m2kit.errors import M2KitError
from m2kit.training.recipes.averaged_module import AveragedModule, Net
from m2kit.training.recipes.metrics import MetricsLog
from m2kit.training.recipes.run_folder import BEST_FILE, METRICS_FILE, RESUME_FILE
from m2kit.training.recipes.saved_state import (
    WholeFiles,
    check_resume,
    not_of_this_run,
    read_best,
)


def fit(
    module: AveragedModule[Net],
    train: DataLoader[Any],
    held_out: DataLoader[Any],
    *,
    epochs: int,
    folder: Path,
    resume_from: Path | None,
    measures: Sequence[str],
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
        measures: Names of all that the module logs: the columns of metrics.csv.
        choose_by: The measure whose smallest value chooses best.ckpt, or None.
        progress: Show a progress bar.

    Raises:
        InputError: A file of the run to go on with is damaged or of another run.
        M2KitError: Training diverged, or was interrupted.
    """
    if resume_from is not None and choose_by:
        read_best(folder / BEST_FILE, module)
    started = _Started()
    callbacks = [MetricsLog(folder / METRICS_FILE, measures), *_savers(folder, choose_by), started]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = _trainer(epochs, callbacks, progress)
        if resume_from is not None:
            check_resume(resume_from, module, trainer)
        try:
            trainer.fit(module, train, held_out, ckpt_path=resume_from, weights_only=True)
        except SystemExit as error:  # how Lightning ends a run on Ctrl-C
            if not trainer.interrupted:
                raise
            raise M2KitError(
                f"interrupted; {folder} holds the run: add --resume to go on with it"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if resume_from is None or started.value:
                raise
            raise not_of_this_run(resume_from, f"Lightning refuses it: {error!r:.200}") from error


def _trainer(epochs: int, callbacks: list[Callback], progress: bool) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[*callbacks, *([RichProgressBar()] if progress else [])],
        enable_progress_bar=progress,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        plugins=[WholeFiles()],
    )


def _savers(folder: Path, choose_by: str | None) -> list[Callback]:
    """The best model before the resume file, which records what was best so far."""
    wanted = [(BEST_FILE, choose_by)] if choose_by else []
    return [
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


class _Started(Callback):
    """Whether all was restored and training has begun."""

    value = False

    def on_train_start(self, *_: Any) -> None:
        """The first thing after Lightning has restored a run."""
        self.value = True
