"""Trains the image tokenizer without an adversary: L1 + LFQ entropy + commitment, Adam, EMA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from m2kit.config import ModelSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.runtime.images import psnr
from m2kit.runtime.saving import write_grid
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.datasets.table import dataset_named
from m2kit.training.evaluation.measures import codebook_usage
from m2kit.training.losses.entropy import entropies
from m2kit.training.models import lfq
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.averaged_module import AveragedModule, warm_up_then_linear
from m2kit.training.recipes.batches import check_batch, in_order, shuffled
from m2kit.training.recipes.loop import fit
from m2kit.training.recipes.run_folder import SAMPLES_FILE, Trained, check_run_folder, open_run
from m2kit.training.recipes.settings import Number, Positive, RunSettings, Weight

CHECKPOINT_FILE = "tokenizer.pt"
_PANELS = {  # of curves.png: everything the module logs
    "L1": ["l1", "held_out_l1"],
    "entropy (nats)": ["entropy_per_position", "entropy_of_mean"],
    "commitment": ["commitment"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings(RunSettings):
    """A tokenizer run. The learning rate warms up linearly over 5 % of the steps, then falls
    linearly to 5 % of its peak.

    Attributes:
        entropy_weight: Of (mean entropy per position - entropy of the mean code), in nats.
        entropy_temperature: Of the soft assignment.
        commitment_weight: Of the mean squared distance between latent and code.
    """

    base_channels: Number
    channel_multipliers: tuple[Number, ...]
    blocks_per_level: Number
    code_bits: Number
    entropy_weight: Weight
    entropy_temperature: Positive
    commitment_weight: Weight

    @property
    def spec(self) -> ImageTokenizerSpec:
        """The architecture, in the released models' bit order and with adaptive GroupNorm."""
        return ImageTokenizerSpec(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            blocks_per_level=self.blocks_per_level,
            code_bits=self.code_bits,
            adaptive_norm=True,
            bit_order="lsb",
        )


@dataclass(frozen=True, slots=True)
class TokenizerTraining(Trained):
    """What came of a tokenizer run.

    Attributes:
        codebook_usage: Share of the codes that the training images use.
        held_out_psnr_db: Of the held-out images' reconstructions.
    """

    settings: TokenizerSettings
    codebook_usage: float
    held_out_psnr_db: float


class TokenizerModule(AveragedModule[Tokenizer]):
    """The training step of the tokenizer."""

    def __init__(self, settings: TokenizerSettings, steps: int) -> None:
        super().__init__(Tokenizer(settings.spec), settings.ema_decay, settings.seed)
        self._settings, self._steps = settings, steps

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        """The weighted sum of the losses of (B, 3, H, W) images, and these."""
        settings = self._settings
        (image,) = batch
        reconstruction, latent = self.net(image)
        l1 = (reconstruction - image).abs().mean()
        entropy = entropies(latent, settings.entropy_temperature)
        commitment = (latent - lfq.quantize(latent).detach()).square().mean()
        loss = (
            l1
            + settings.entropy_weight * (entropy.per_position - entropy.of_mean)
            + settings.commitment_weight * commitment
        )
        values = {
            "l1": l1,
            "entropy_per_position": entropy.per_position,
            "entropy_of_mean": entropy.of_mean,
            "commitment": commitment,
        }
        self.log_dict(values, on_step=False, on_epoch=True)
        return {**values, "loss": loss}

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        """L1 of the averaged model on held-out images."""
        (image,) = batch
        reconstruction, _latent = self.averaged(image)
        self.log("held_out_l1", (reconstruction - image).abs().mean(), prog_bar=True)

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Adam with the official betas, warm-up and linear decay."""
        optimizer = torch.optim.Adam(
            self.net.parameters(), self._settings.learning_rate, betas=(0.5, 0.9)
        )
        schedule = warm_up_then_linear(optimizer, self._steps // 20, self._steps, 0.05)
        return optimizer, schedule


def train_tokenizer(
    settings: TokenizerSettings,
    folder: Path,
    *,
    resume: bool,
    progress: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> TokenizerTraining:
    """Train to the end; the run folder then holds tokenizer.pt, curves.png and samples.png.

    Args:
        settings: What to train and how.
        folder: The run folder.
        resume: Go on with the run in the folder; it may be given more epochs.
        progress: Show a progress bar.
        tell: Called with what more epochs change.

    Raises:
        SpecError: The architecture is impossible.
        InputError: It does not fit the images, there is no such data set, or the folder holds
            another run or is in use.
        FolderError: The folder cannot be written.
        M2KitError: Training diverged.
        TrainingInterrupted: The user pressed Ctrl-C.
    """
    check_run_folder(folder, CHECKPOINT_FILE)
    data = dataset_named(settings.data)
    data.latent_grid(settings.spec)
    train, held_out = data.load()
    check_batch(settings.batch, len(train.images))
    with open_run(folder, settings, resume, tell) as (settings, resume_from):
        torch.manual_seed(settings.seed)
        batches = shuffled(train.images, batch=settings.batch, seed=settings.seed)
        module = TokenizerModule(settings, settings.epochs_of_schedule * len(batches))
        fit(
            module,
            batches,
            in_order(held_out.images),
            epochs=settings.epochs,
            folder=folder,
            resume_from=resume_from,
            panels=_PANELS,
            choose_by=None,
            progress=progress,
        )
        tokenizer = module.averaged.eval()
        rebuilt = _reconstruct(tokenizer, held_out.images)
        training = TokenizerTraining(
            data=data.title,
            codebook_usage=_usage(tokenizer, train.images),
            held_out_psnr_db=round(psnr(held_out.images.numpy(), rebuilt), 3),
            settings=settings,
        )
        _write_results(folder, module, training, held_out.images.numpy(), rebuilt)
    return training


def _write_results(
    folder: Path,
    module: TokenizerModule,
    training: TokenizerTraining,
    images: npt.NDArray[np.float32],
    rebuilt: npt.NDArray[np.float32],
) -> None:
    """tokenizer.pt, and samples.png with images above their reconstructions."""
    settings: TokenizerSettings = training.settings
    write_tokenizer_checkpoint(
        folder / CHECKPOINT_FILE,
        module.net.state_dict(),
        module.averaged.state_dict(),
        ema_decay=settings.ema_decay,
        notes={"spec": ModelSpec(settings.spec, None).to_json(), "training": training.to_json()},
    )
    rows = [part[i : i + 10] for i in (0, 10) for part in (images, rebuilt)]  # above each other
    write_grid(folder / SAMPLES_FILE, np.concatenate(rows), columns=10, scale=2)


@torch.no_grad()
def _usage(tokenizer: Tokenizer, images: Tensor) -> float:
    vocabularies = tokenizer.spec.vocabularies
    tokens = tokenizer.tokens(tokenizer.codes(images), vocabularies)
    return codebook_usage(tokens.numpy(), vocabularies)


@torch.no_grad()
def _reconstruct(tokenizer: Tokenizer, images: Tensor) -> npt.NDArray[np.float32]:
    images = tokenizer.decoder(tokenizer.codes(images))
    return images.numpy()
