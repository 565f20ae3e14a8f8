"""Trains the autoregressive model on the tokens of a trained tokenizer: cross-entropy per
sub-token, 10 % class dropout, AdamW with warm-up, EMA; the model is chosen by held-out bits."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import InputError
from m2kit.folders import sha256_of_file
from m2kit.images import write_grid
from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampling
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_ar_checkpoint
from m2kit.training.digits import CLASSES, LabelledImages, digits, warped
from m2kit.training.evaluation import codebook_usage
from m2kit.training.loop import (
    METRICS_FILE,
    AveragedModule,
    check_batch,
    fit,
    in_order,
    load_best,
    open_run,
    shuffled,
    warm_up_then_linear,
)
from m2kit.training.models import lfq
from m2kit.training.models.model import TorchModel
from m2kit.training.models.transformer import Transformer
from m2kit.training.plots import plot_curves
from m2kit.training.torch_backend import TorchBackend

CHECKPOINT_FILE = "ar.pt"
_HELD_OUT_BITS = "held_out_bits"
_SAMPLES_PER_CLASS = 8


@dataclass(frozen=True, slots=True)
class ARSettings:
    """An AR run; the defaults are those of the digits example.

    Attributes:
        bits: Bits of each sub-token; they sum to the tokenizer's code bits.
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: Peak; linear warm-up over 5 %, then linear to 10 %.
        weight_decay: Of AdamW, on every weight but those of the norms.
        dropout: On the input embedding and both residual branches.
        class_dropout: Share of images trained under the unconditional class.
        ema_decay: Of the weights' moving average.
        versions: Training images are encoded this many times: as they are, then warped a little.
        guidance: Default guidance scale per sub-token, kept in the checkpoint.
        tokenizer_sha256: Of the tokenizer file.
        seed: Of initial weights, order and dropout.
    """

    width: int
    heads: int
    inter_layers: int
    intra_layers: int
    ffn_width: int
    bits: tuple[int, ...]
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    dropout: float
    class_dropout: float
    ema_decay: float
    versions: int
    guidance: tuple[float, ...]
    tokenizer_sha256: str
    seed: int

    def spec(self, grid: tuple[int, int]) -> TransformerSpec:
        """The architecture on a latent grid."""
        return TransformerSpec(
            width=self.width,
            heads=self.heads,
            inter_layers=self.inter_layers,
            intra_layers=self.intra_layers,
            ffn_width=self.ffn_width,
            grid=grid,
            classes=CLASSES,
            bits=self.bits,
            rope_base=10000.0,
        )


class ARModule(AveragedModule):
    """The training step of the transformer; batches are (class (B), tokens (B, V, N, K)) with V
    versions of each image, of which every step draws one."""

    def __init__(self, settings: ARSettings, spec: TransformerSpec, steps: int) -> None:
        net = Transformer(spec, settings.dropout)
        super().__init__(net, settings.ema_decay, settings.seed)
        self._settings, self._steps = settings, steps

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        """Mean cross-entropy over sub-tokens, summed over the sub-tokens of a token."""
        classes, versions = batch
        drop = torch.rand(len(classes), device=classes.device) < self._settings.class_dropout
        classes = torch.where(drop, self.net.spec.classes, classes)
        chosen = torch.randint(versions.shape[1], (len(classes),), device=classes.device)
        tokens = versions[torch.arange(len(classes), device=classes.device), chosen]
        loss = token_nats(self.net(classes, tokens), tokens)
        self.log("train_bits", loss / math.log(2), on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        """Held-out bits per token of the averaged model."""
        classes, versions = batch
        bits = token_nats(self.ema.module(classes, versions[:, 0]), versions[:, 0]) / math.log(2)
        self.log(_HELD_OUT_BITS, bits, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with the official betas; no weight decay on norms."""
        parameters = list(self.net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            self._settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self._settings.weight_decay,
        )
        schedule = warm_up_then_linear(optimizer, self._steps // 20, self._steps, 0.1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def token_nats(logits: list[Tensor], tokens: Tensor) -> Tensor:
    """Mean over tokens of the cross-entropy in nats, summed over sub-tokens.

    Args:
        logits: K tensors (B, N, V_k).
        tokens: (B, N, K).
    """
    losses = [
        functional.cross_entropy(part.flatten(0, 1), tokens[..., k].flatten())
        for k, part in enumerate(logits)
    ]
    return torch.stack(losses).sum()


def train_ar(
    settings: ARSettings, tokenizer_file: Path, folder: Path, *, resume: bool, progress: bool
) -> dict[str, Any]:
    """Train to the end; the run folder then holds ar.pt, curves.png and samples.png.

    Returns:
        What the checkpoint notes about its training.

    Raises:
        CheckpointError: The tokenizer file cannot be used.
        SpecError: The bits do not fit the tokenizer, or the architecture is impossible.
        InputError: The folder holds another run.
    """
    tokenizer = model_from_checkpoint(read_checkpoint(tokenizer_file))
    train, held_out = digits()
    spec = ModelSpec(tokenizer.spec.tokenizer, settings.spec(_grid(tokenizer, train)))
    check_batch(settings.batch, len(train.labels))
    resume_from = open_run(folder, settings, resume)
    train_tokens = _tokens(tokenizer, train, settings)
    held_out_tokens = _tokens(tokenizer, held_out, replace(settings, versions=1))
    torch.manual_seed(settings.seed)
    batches = shuffled(train.labels, train_tokens, batch=settings.batch, seed=settings.seed)
    module = ARModule(settings, spec.transformer, settings.epochs * len(batches))
    fit(
        module,
        batches,
        in_order(held_out.labels, held_out_tokens),
        epochs=settings.epochs,
        folder=folder,
        resume_from=resume_from,
        choose_by=_HELD_OUT_BITS,
        progress=progress,
    )
    best = load_best(folder)
    module.load_state_dict(best["state_dict"])
    transformer = module.ema.module.eval()
    plain = train_tokens[:, :1]  # the images as they are
    training = {
        "data": "scikit-learn digits, 80 % of the images",
        "chosen_epoch": int(best["epoch"]) + 1,
        "held_out_bits_per_token": _bits(transformer, held_out.labels, held_out_tokens),
        "training_bits_per_token": _bits(transformer, train.labels, plain),
        "codebook_usage": codebook_usage(plain.numpy(), settings.bits),
        **asdict(settings),
    }
    _write_results(folder, TorchModel(spec, tokenizer.tokenizer, transformer), training)
    return training


def _write_results(folder: Path, model: TorchModel, training: dict[str, Any]) -> None:
    """ar.pt, curves.png, and samples.png with a row per class."""
    sampling = {"guidance": training["guidance"]}
    notes = {"spec": model.spec.to_json(), "sampling": sampling, "training": training}
    write_ar_checkpoint(folder / CHECKPOINT_FILE, model.tensors(), notes)
    panels = {"bits per token": ["train_bits", _HELD_OUT_BITS]}
    plot_curves(folder / METRICS_FILE, folder / "curves.png", panels)
    with Engine(model.spec, TorchBackend(model), defaults=sampling) as engine:
        classes = np.arange(CLASSES).repeat(_SAMPLES_PER_CLASS)
        images = engine.decode(engine.sample(classes, Sampling(seed=0)))
    write_grid(folder / "samples.png", images, columns=_SAMPLES_PER_CLASS, scale=2)


def _grid(tokenizer: TorchModel, data: LabelledImages) -> tuple[int, int]:
    """The latent grid of the images."""
    height, width = data.images.shape[2:]
    factor = tokenizer.spec.tokenizer.downsampling
    return height // factor, width // factor


def settings_for(tokenizer_file: Path, **values: Any) -> ARSettings:
    """Settings of a run on a tokenizer file."""
    if not tokenizer_file.is_file():
        raise InputError(
            f"{tokenizer_file}: no such tokenizer file; train one with `m2kit train tokenizer`"
        )
    return ARSettings(tokenizer_sha256=sha256_of_file(tokenizer_file), **values)


@torch.no_grad()
def _tokens(model: TorchModel, data: LabelledImages, settings: ARSettings) -> Tensor:
    """(n, V, N, K) tokens of V versions of the images, the unchanged one first."""
    generator = torch.Generator().manual_seed(settings.seed)
    versions = []
    for version in range(settings.versions):
        images = warped(data.images, generator) if version else data.images
        codes = torch.cat([model.tokenizer.codes(part) for part in images.split(256)])
        bit_order = model.spec.tokenizer.bit_order
        versions.append(lfq.tokens_from_codes(codes, settings.bits, bit_order).flatten(1, 2))
    return torch.stack(versions, dim=1)


@torch.no_grad()
def _bits(transformer: Transformer, labels: Tensor, tokens: Tensor) -> float:
    nats = token_nats(transformer(labels, tokens[:, 0]), tokens[:, 0])
    return round(float(nats) / math.log(2), 4)
