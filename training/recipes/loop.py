"""The training loop that all recipes share.

Every epoch draws its randomness from (seed, epoch), so a resumed run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from m2kit.errors import M2KitError, TrainingInterrupted
from m2kit.training.recipes.averaged_module import AveragedModule, Diverged, Net
from m2kit.training.recipes.metrics import MetricsLog, Panels, plot_curves
from m2kit.training.recipes.run_folder import BEST_FILE, CURVES_FILE, METRICS_FILE, RESUME_FILE
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
    panels: Panels,
    choose_by: str | None,
    progress: bool,
) -> None:
    """Train to the end; metrics.csv, resume.ckpt, best.ckpt and curves.png appear in `folder`.

    Args:
        module: What to train.
        train: Training batches.
        held_out: Held-out batches, run after every epoch.
        epochs: Epochs in all, those before a resume included.
        folder: The run folder.
        resume_from: A resume.ckpt, or None.
        panels: All that the module logs, by the panels of curves.png.
        choose_by: The measure whose smallest value chooses best.ckpt, or None.
        progress: Show a progress bar.

    Raises:
        InputError: A file of the run to go on with is damaged or of another run.
        M2KitError: Training diverged.
        TrainingInterrupted: The user pressed Ctrl-C.
    """
    if resume_from is not None and choose_by:
        read_best(folder / BEST_FILE, module)
    log = MetricsLog(folder / METRICS_FILE, panels)
    callbacks: list[Callback] = [log]
    if choose_by:  # before the resume file, which records what was best so far
        callbacks.append(_saver(folder / BEST_FILE, choose_by))
    callbacks.append(_saver(folder / RESUME_FILE, None))
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
        if resume_from is not None:
            check_resume(resume_from, module, trainer)
        try:
            trainer.fit(module, train, held_out, ckpt_path=resume_from, weights_only=True)
        except Diverged as error:
            done = module.current_epoch
            before = f"{folder / RESUME_FILE} is as it was after epoch {done}"
            kept = before if done else "no epoch was finished"
            raise M2KitError(
                f"{error}; {kept}; start again with a lower learning rate in another folder",
                option="--learning-rate, -o",
            ) from error
        except SystemExit as error:  # how Lightning ends a run on Ctrl-C
            if not trainer.interrupted:
                raise
            raise TrainingInterrupted(
                f"interrupted; {folder} holds the run: add --resume to go on with it"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if resume_from is None or log.started:
                raise
            raise not_of_this_run(resume_from, f"Lightning refuses it: {error!r:.200}") from error
    plot_curves(folder / METRICS_FILE, folder / CURVES_FILE, panels)


def _saver(path: Path, choose_by: str | None) -> ModelCheckpoint:
    """Saves the last epoch's whole state, or the weights of the best by a measure."""
    return ModelCheckpoint(
        path.parent,
        path.stem,
        monitor=choose_by,
        save_weights_only=choose_by is not None,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
