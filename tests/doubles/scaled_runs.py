"""Small runs in float64 of both recipes, in this process or, run as a script, in two that torchrun
has started: `torchrun ... scaled_runs.py JOBS.json`. Nothing in them depends on how a batch is
divided: no dropout, entropy and LeCam over all processes, BatchNorm as if it was not training.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from torch import nn
from torch.nn import functional

from m2kit.errors import TrainingInterrupted
from m2kit.host import process_rank
from m2kit.training.datasets.crops import Crops
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.loop import Run
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.settings import TokenizerSettings, settings_for
from m2kit.training.recipes.tokenizer import train_tokenizer

STEPS, BATCH = 4, 8


def evaluating(self, x):
    """In place of BatchNorm2d.forward: by its running statistics always, which so stay."""
    return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def pictures(path, count=24):
    """Writes an .npz of coloured noise."""
    random = np.random.default_rng(0)
    np.savez(
        path,
        images=random.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8),
        labels=np.arange(count) % 2,
        categories=np.array(["even", "odd"]),
    )


def run(
    kind, *, folder, data, tokenizer=None, devices=1, strategy="ddp", accumulate=2, published=False
):
    """Train in a folder, on from what it holds; as published each process has averages of its own,
    from the first step on."""
    folder = Path(folder)
    machine = Machine(
        accelerator="cpu", devices=devices, strategy=strategy, precision="fp64",
        accumulate=accumulate,
    )  # fmt: skip
    shared = {
        "data": str(data), "epochs": 1, "steps": STEPS, "batch": BATCH, "learning_rate": 1e-3,
        "ema_decay": 0.9, "log_every": 2, "validate_every": 4, "clip": 1.0, "seed": 3,
    }  # fmt: skip
    resume = (folder / "settings.json").exists()
    if kind == "tokenizer":
        settings = TokenizerSettings(
            base_channels=32, channel_multipliers=(1, 1, 1), blocks_per_level=1, code_bits=4,
            adversary="patch", adversary_width=8, lecam_weight=0.5,
            adversary_from=0.0 if published else 1.0, entropy_weight=0.1, entropy_temperature=0.1,
            commitment_weight=0.25, over_processes=not published, **shared,
        )  # fmt: skip
        train_tokenizer(settings, folder, resume=resume, machine=machine)
    else:
        settings = settings_for(
            Path(tokenizer), width=16, heads=2, inter_layers=2, intra_layers=1, ffn_width=16,
            bits=(2, 2), weight_decay=0.05, dropout=0.0, class_dropout=0.0, versions=1,
            guidance=(2.0, 2.0), **shared,
        )  # fmt: skip
        train_ar(settings, Path(tokenizer), folder, resume=resume, machine=machine)


def _stopped_in(step):
    """Sends the second process SIGTERM in a step, counted from 0."""
    whole = Run._step

    def taken(self, now, parts):
        if now == step and self.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, now, parts)

    return mock.patch.object(Run, "_step", taken)


def _noting(numbers):
    """Notes the item numbers of crops that are trained on."""
    fit, crop = Run.fit, Crops.__getitem__

    def noted(self, number):
        if self.cut.place == "random":
            numbers.append(number)
        return crop(self, number)

    def taken(self, resume_from):
        with mock.patch.object(Crops, "__getitem__", noted):
            fit(self, resume_from)

    return mock.patch.object(Run, "fit", taken)


def main():
    """Run the jobs of a file one after the other."""
    nn.BatchNorm2d.forward = evaluating
    for job in json.loads(Path(sys.argv[1]).read_text()):
        stop, kept = job.pop("stop", None), job.pop("keep", None)
        numbers = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(_noting(numbers))
            stack.enter_context(contextlib.suppress(SystemExit, TrainingInterrupted))
            if stop is not None:
                stack.enter_context(_stopped_in(stop))
            run(devices=2, **job)
        Path(job["folder"], f"seen-{process_rank()}.json").write_text(json.dumps(numbers))
        if kept and process_rank() == 0:
            shutil.copytree(job["folder"], kept)


if __name__ == "__main__":
    main()
