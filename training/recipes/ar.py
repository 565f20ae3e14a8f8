"""Trains the autoregressive model on the tokens of a trained tokenizer: cross-entropy per
sub-token, 10 % class dropout, AdamW with warm-up, EMA; the model is chosen by held-out bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import InputError
from m2kit.hashes import sha256_of_file
from m2kit.records import JsonObject, Text
from m2kit.runtime.drawing import draw_images
from m2kit.runtime.engine import Engine
from m2kit.runtime.saving import write_grid
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_ar_checkpoint
from m2kit.training.datasets.table import dataset_named
from m2kit.training.evaluation.measures import codebook_usage
from m2kit.training.losses.tokens import token_nats
from m2kit.training.models.model import TorchModel
from m2kit.training.models.transformer import Transformer
from m2kit.training.recipes.averaged_module import AveragedModule, warm_up_then_linear
from m2kit.training.recipes.batches import check_batch, in_order, shuffled
from m2kit.training.recipes.loop import fit
from m2kit.training.recipes.run_folder import (
    BEST_FILE,
    SAMPLES_FILE,
    Trained,
    check_run_folder,
    open_run,
)
from m2kit.training.recipes.saved_state import read_best
from m2kit.training.recipes.settings import Number, RunSettings, Share
from m2kit.training.torch_backend import TorchBackend

CHECKPOINT_FILE = "ar.pt"
_TRAIN_BITS, _HELD_OUT_BITS = "train_bits", "held_out_bits"
_PANELS = {"bits per token": [_TRAIN_BITS, _HELD_OUT_BITS]}  # all that the module logs
_SAMPLES_PER_CLASS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ARSettings(RunSettings):
    """An AR run. The learning rate warms up linearly over 5 % of the steps, then falls linearly to
    10 % of its peak.

    Attributes:
        bits: Bits of each sub-token; they sum to the tokenizer's code bits.
        weight_decay: Of AdamW, on every weight but those of the norms.
        dropout: On the input embedding and both residual branches.
        class_dropout: Share of images trained under the unconditional class.
        versions: Training images are encoded this many times: as they are, then warped a little.
        guidance: Default guidance scale per sub-token, kept in the checkpoint.
        tokenizer_sha256: Of the tokenizer file.
    """

    width: Number
    heads: Number
    inter_layers: Number
    intra_layers: Number
    ffn_width: Number
    bits: tuple[Number, ...]
    weight_decay: Share
    dropout: Share
    class_dropout: Share
    versions: Number
    guidance: tuple[float, ...]
    tokenizer_sha256: Text

    def __post_init__(self) -> None:
        """Refuse a field out of its range, and guidance that no sampling takes."""
        RunSettings.__post_init__(self)  # super() knows no class that has slots
        Sampling(guidance=self.guidance).resolve(len(self.bits), None)

    def spec(self, grid: tuple[int, ...], classes: int) -> TransformerSpec:
        """The architecture on a latent grid (h, w)."""
        return TransformerSpec(
            width=self.width,
            heads=self.heads,
            inter_layers=self.inter_layers,
            intra_layers=self.intra_layers,
            ffn_width=self.ffn_width,
            grid=grid,
            classes=classes,
            vocabularies=tuple(2**count for count in self.bits),
            rope_base=10000.0,
        )


@dataclass(frozen=True, slots=True)
class ARTraining(Trained):
    """What came of an AR run.

    Attributes:
        chosen_epoch: The epoch that left the model, counted from 1.
        held_out_bits_per_token: Of the held-out images' tokens.
        training_bits_per_token: Of the training images', as they are.
        codebook_usage: Share of the codes that the training images use.
    """

    settings: ARSettings
    chosen_epoch: int
    held_out_bits_per_token: float
    training_bits_per_token: float
    codebook_usage: float


class ARModule(AveragedModule[Transformer]):
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
        self.log(_TRAIN_BITS, loss / math.log(2), on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        """Held-out bits per token of the averaged model."""
        classes, versions = batch
        tokens = versions[:, 0]
        bits = token_nats(self.averaged(classes, tokens), tokens) / math.log(2)
        self.log(_HELD_OUT_BITS, bits, prog_bar=True)

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """AdamW with the official betas; no weight decay on norms."""
        parameters = list(self.net.parameters())
        groups: list[dict[str, Any]] = [
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
        return optimizer, schedule


def train_ar(
    settings: ARSettings,
    tokenizer_file: Path,
    folder: Path,
    *,
    resume: bool,
    progress: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> ARTraining:
    """Train to the end; the run folder then holds ar.pt, curves.png and samples.png.

    Args:
        settings: What to train and how.
        tokenizer_file: Of the tokenizer whose tokens it is trained on.
        folder: The run folder.
        resume: Go on with the run in the folder; it may be given more epochs.
        progress: Show a progress bar.
        tell: Called with what more epochs change.

    Raises:
        CheckpointError: The tokenizer file cannot be used.
        SpecError: The bits do not fit the tokenizer, or the architecture is impossible.
        InputError: The tokenizer does not fit the images, there is no such data set, or the
            folder holds another run or is in use.
        FolderError: The folder cannot be written.
        M2KitError: Training diverged.
        TrainingInterrupted: The user pressed Ctrl-C.
    """
    check_run_folder(folder, CHECKPOINT_FILE)
    tokenizer = model_from_checkpoint(read_checkpoint(tokenizer_file))
    data = dataset_named(settings.data)
    grid = data.latent_grid(tokenizer.spec.tokenizer)
    transformer_spec = settings.spec(grid, data.classes)
    spec = ModelSpec(tokenizer.spec.tokenizer, transformer_spec)
    train, held_out = data.load()
    check_batch(settings.batch, len(train.labels))
    with open_run(folder, settings, resume, tell) as (settings, resume_from):
        generator = torch.Generator().manual_seed(settings.seed)
        varied = (data.vary(train.images, generator) for _ in range(settings.versions - 1))
        train_tokens = _tokens(tokenizer, itertools.chain([train.images], varied), spec)
        held_out_tokens = _tokens(tokenizer, [held_out.images], spec)
        torch.manual_seed(settings.seed)
        batches = shuffled(train.labels, train_tokens, batch=settings.batch, seed=settings.seed)
        steps = settings.epochs_of_schedule * len(batches)
        module = ARModule(settings, transformer_spec, steps)
        fit(
            module,
            batches,
            in_order(held_out.labels, held_out_tokens),
            epochs=settings.epochs,
            folder=folder,
            resume_from=resume_from,
            panels=_PANELS,
            choose_by=_HELD_OUT_BITS,
            progress=progress,
        )
        epoch, tensors = read_best(folder / BEST_FILE, module)
        module.load_state_dict(tensors)
        transformer = module.averaged.eval()
        plain = train_tokens[:, :1]  # the images as they are
        training = ARTraining(
            data=data.title,
            chosen_epoch=epoch + 1,
            held_out_bits_per_token=_bits(transformer, held_out.labels, held_out_tokens),
            training_bits_per_token=_bits(transformer, train.labels, plain),
            codebook_usage=codebook_usage(plain.numpy(), spec.vocabularies),
            settings=settings,
        )
        model = TorchModel(spec, tokenizer.tokenizer, transformer)
        _write_results(folder, model, training.to_json())
    return training


def _write_results(folder: Path, model: TorchModel, training: JsonObject) -> None:
    """ar.pt, and samples.png with a row per class."""
    sampling = {"guidance": training["guidance"]}
    notes = {"spec": model.spec.to_json(), "sampling": sampling, "training": training}
    write_ar_checkpoint(folder / CHECKPOINT_FILE, model.tensors(), notes)
    with Engine(model.spec, TorchBackend(model)) as engine:
        classes = range(engine.transformer.classes)
        drawn = draw_images(engine, classes, _SAMPLES_PER_CLASS, Sampling(**sampling))
        images = np.concatenate([part.images for part in drawn])
    write_grid(folder / SAMPLES_FILE, images, columns=_SAMPLES_PER_CLASS, scale=2)


def settings_for(tokenizer_file: Path, **values: Any) -> ARSettings:
    """Settings of a run on a tokenizer file."""
    if not tokenizer_file.is_file():
        raise InputError(
            f"{tokenizer_file}: no such tokenizer file; train one with `m2kit train tokenizer`"
        )
    return ARSettings(tokenizer_sha256=sha256_of_file(tokenizer_file), **values)


@torch.no_grad()
def _tokens(model: TorchModel, versions: Iterable[Tensor], spec: ModelSpec) -> Tensor:
    """(n, V, N, K) tokens of V versions of n images."""
    tokens = []
    for images in versions:
        codes = torch.cat([model.tokenizer.codes(part) for part in torch.split(images, 256)])
        tokens.append(model.tokenizer.tokens(codes, spec.vocabularies).flatten(1, -2))
    return torch.stack(tokens, dim=1)


@torch.no_grad()
def _bits(transformer: Transformer, labels: Tensor, tokens: Tensor) -> float:
    nats = token_nats(transformer(labels, tokens[:, 0]), tokens[:, 0])
    return round(float(nats) / math.log(2), 4)
