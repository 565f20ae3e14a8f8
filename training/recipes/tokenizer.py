"""Trains the image tokenizer without an adversary: L1 + LFQ entropy + commitment, Adam, EMA."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2kit.config import ModelSpec, TokenizerSpec
from m2kit.errors import InputError
from m2kit.images import psnr, write_grid
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.digits import digits
from m2kit.training.evaluation import codebook_usage
from m2kit.training.loop import (
    METRICS_FILE,
    AveragedModule,
    check_batch,
    fit,
    in_order,
    open_run,
    shuffled,
    warm_up_then_linear,
)
from m2kit.training.models import lfq
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.plots import plot_curves

CHECKPOINT_FILE = "tokenizer.pt"


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """A tokenizer run; the defaults are those of the digits example.

    Attributes:
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: Peak; linear warm-up over 5 %, then linear to 5 %.
        ema_decay: Of the weights' moving average.
        entropy_weight: Of (mean entropy per position - entropy of the mean code), in nats.
        entropy_temperature: Of the soft assignment.
        commitment_weight: Of the mean squared distance between latent and code.
        seed: Of initial weights and order.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    code_bits: int
    epochs: int
    batch: int
    learning_rate: float
    ema_decay: float
    entropy_weight: float
    entropy_temperature: float
    commitment_weight: float
    seed: int

    @property
    def spec(self) -> TokenizerSpec:
        """The architecture, in the released models' bit order and with adaptive GroupNorm."""
        return TokenizerSpec(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            blocks_per_level=self.blocks_per_level,
            code_bits=self.code_bits,
            adaptive_norm=True,
            bit_order="lsb",
        )


class TokenizerModule(AveragedModule):
    """The training step of the tokenizer."""

    def __init__(self, settings: TokenizerSettings, steps: int) -> None:
        super().__init__(Tokenizer(settings.spec), settings.ema_decay, settings.seed)
        self._settings, self._steps = settings, steps

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        """The weighted sum of the losses of (B, 3, H, W) images."""
        settings = self._settings
        (image,) = batch
        reconstruction, latent = self.net(image)
        l1 = (reconstruction - image).abs().mean()
        per_position, overall = lfq.entropy_loss(latent, settings.entropy_temperature)
        commitment = (latent - lfq.quantize(latent).detach()).square().mean()
        loss: Tensor = (
            l1
            + settings.entropy_weight * (per_position - overall)
            + settings.commitment_weight * commitment
        )
        values = {
            "l1": l1,
            "entropy_per_position": per_position,
            "entropy_of_mean": overall,
            "commitment": commitment,
        }
        self.log_dict(values, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        """L1 of the averaged model on held-out images."""
        (image,) = batch
        reconstruction, _latent = self.ema.module(image)
        self.log("held_out_l1", (reconstruction - image).abs().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam with the official betas, warm-up and linear decay."""
        optimizer = torch.optim.Adam(
            self.net.parameters(), self._settings.learning_rate, betas=(0.5, 0.9)
        )
        schedule = warm_up_then_linear(optimizer, self._steps // 20, self._steps, 0.05)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train_tokenizer(
    settings: TokenizerSettings, folder: Path, *, resume: bool, progress: bool
) -> dict[str, Any]:
    """Train to the end; the run folder then holds tokenizer.pt, curves.png and samples.png.

    Returns:
        What the checkpoint notes about its training.

    Raises:
        SpecError: The architecture is impossible.
        InputError: It does not fit the images, or the folder holds another run.
    """
    train, held_out = digits()
    _check_grid(settings.spec, train.images)
    check_batch(settings.batch, len(train.images))
    resume_from = open_run(folder, settings, resume)
    torch.manual_seed(settings.seed)
    batches = shuffled(train.images, batch=settings.batch, seed=settings.seed)
    module = TokenizerModule(settings, settings.epochs * len(batches))
    fit(
        module,
        batches,
        in_order(held_out.images),
        epochs=settings.epochs,
        folder=folder,
        resume_from=resume_from,
        choose_by=None,
        progress=progress,
    )
    tokenizer = module.ema.module.eval()
    training = {
        "data": "scikit-learn digits, 80 % of the images",
        "codebook_usage": _usage(tokenizer, train.images),
        "held_out_psnr_db": _psnr(tokenizer, held_out.images),
        **asdict(settings),
    }
    spec = ModelSpec(settings.spec, None)
    write_tokenizer_checkpoint(
        folder / CHECKPOINT_FILE,
        module.net.state_dict(),
        tokenizer.state_dict(),
        ema_decay=settings.ema_decay,
        notes={"spec": spec.to_json(), "training": training},
    )
    plot_curves(
        folder / METRICS_FILE,
        folder / "curves.png",
        {
            "L1": ["l1", "held_out_l1"],
            "entropy (nats)": ["entropy_per_position", "entropy_of_mean"],
            "commitment": ["commitment"],
        },
    )
    _write_samples(folder / "samples.png", tokenizer, held_out.images[:20])
    return training


def _check_grid(spec: TokenizerSpec, images: Tensor) -> None:
    height, width = images.shape[2:]
    factor = spec.downsampling
    if height % factor or width % factor or (height // factor) * (width // factor) < 2:
        raise InputError(
            f"--channel-multipliers has {len(spec.channel_multipliers)} levels, which divide each "
            f"side by {factor}: the {height} x {width} images must leave two whole latent "
            "positions or more; give fewer levels"
        )


@torch.no_grad()
def _usage(tokenizer: Tokenizer, images: Tensor) -> float:
    bits = (tokenizer.spec.code_bits,)
    tokens = lfq.tokens_from_codes(tokenizer.codes(images), bits, "lsb")
    return codebook_usage(tokens.numpy(), bits)


@torch.no_grad()
def _reconstruct(tokenizer: Tokenizer, images: Tensor) -> np.ndarray[Any, Any]:
    return tokenizer.decoder(tokenizer.codes(images)).numpy()


def _psnr(tokenizer: Tokenizer, images: Tensor) -> float:
    return round(psnr(images.numpy(), _reconstruct(tokenizer, images)), 3)


def _write_samples(path: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    """Held-out images above their reconstructions, ten a row."""
    rebuilt = _reconstruct(tokenizer, images)
    rows = [part[i : i + 10] for i in (0, 10) for part in (images.numpy(), rebuilt)]
    write_grid(path, np.concatenate(rows), columns=10, scale=2)
