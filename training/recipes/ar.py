"""Trains the autoregressive model on the tokens of a trained tokenizer: cross-entropy per
sub-token, class dropout, AdamW; the model is chosen by held-out bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.config import ModelSpec
from m2kit.progress import Begin, silent
from m2kit.records import JsonObject
from m2kit.runtime.drawing import draw_images
from m2kit.runtime.engine import Engine
from m2kit.runtime.saving import write_grid
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_ar_checkpoint
from m2kit.training.datasets.tokens import TokenExamples, tokens_of
from m2kit.training.losses.tokens import token_nats
from m2kit.training.models.model import TorchModel
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer
from m2kit.training.recipes.beginning import begun
from m2kit.training.recipes.division import check_batch
from m2kit.training.recipes.environment import environment_of
from m2kit.training.recipes.loop import Run, Tell
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.page import figure_of_reconstructions, figure_of_samples, write_page
from m2kit.training.recipes.phase import Batch, Losses, Phase, Recipe
from m2kit.training.recipes.run_folder import (
    AR_FILE,
    BEST_FILE,
    SAMPLES_FILE,
    Trained,
)
from m2kit.training.recipes.saved_state import read_best
from m2kit.training.recipes.settings import ARSettings
from m2kit.training.recipes.token_source import (
    FromPictures,
    Source,
    Tokens,
    codebook_of_tokens,
    token_source,
)
from m2kit.training.torch_backend import TorchBackend

_TRAIN_BITS, _HELD_OUT_BITS = "train_bits", "held_out_bits"
_SAMPLES_PER_CLASS = 8
_ROWS_WHILE_TRAINING, _ROWS_AT_THE_END = 10, 100  # classes
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class ARTraining(Trained):
    """What came of an AR run.

    Attributes:
        chosen_step: The step that left the model, counted from 1.
        held_out_bits_per_token: Of the held-out images' tokens.
        training_bits_per_token: Of training images, a hundred thousand at most, as they are.
        classes: Their names, by which `generate --class` knows them.
        codebook_usage: Share of the codes that the same training images use.
    """

    settings: ARSettings
    chosen_step: int
    held_out_bits_per_token: float
    training_bits_per_token: float
    codebook_usage: float
    classes: tuple[str, ...]


class ARRecipe(Recipe):
    """The transformer's step; batches are (tokens (B, N, K) or images (B, 3, H, W), classes (B)).

    Args:
        settings: Of the run.
        spec: Of tokenizer and transformer.
        tokenizer: Trained; it is not trained further.
        sharded: The weights are divided among processes, which cannot draw images with them.
    """

    columns = shown = _SAMPLES_PER_CLASS

    def __init__(
        self,
        settings: ARSettings,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        *,
        sharded: bool = False,
    ) -> None:
        assert spec.transformer is not None
        self.settings, self.spec, self.tokenizer = settings, spec, tokenizer
        self.sharded = sharded
        self.statistics = nn.Module()  # there are none
        self.transformer = Phase(
            "transformer",
            Transformer(spec.transformer, settings.dropout),
            self._losses,
            self._optimizer,
            ema_decay=settings.ema_decay,
            clip=settings.clip,
        )
        self.phases = [self.transformer]
        parts = range(1, len(settings.bits) + 1) if len(settings.bits) > 1 else ()
        self._parts = [f"{_HELD_OUT_BITS}_{part}" for part in parts]
        self.panels = {
            "bits per token": [_TRAIN_BITS, _HELD_OUT_BITS],
            **({"bits by sub-token": self._parts} if self._parts else {}),
            "gradient norm": ["transformer_gradient_norm"],
            "learning rate": ["learning_rate"],
        }

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the official betas; no weight decay on norms."""
        parameters = list(network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        settings = self.settings
        return torch.optim.AdamW(
            groups, settings.learning_rate, (0.9, 0.95), weight_decay=settings.weight_decay
        )

    def _tokens(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            return inputs
        images = inputs.to(next(self.tokenizer.parameters()).dtype)
        return tokens_of(self.tokenizer, images, self.spec.vocabularies)

    def _losses(self, _step: int, batch: Batch) -> Losses:
        """Mean cross-entropy over sub-tokens, summed over the sub-tokens of a token."""
        inputs, classes = batch
        tokens = self._tokens(inputs)
        drop = torch.rand(len(classes), device=classes.device) < self.settings.class_dropout
        assert self.spec.transformer is not None
        classes = torch.where(drop, self.spec.transformer.classes, classes)
        loss = token_nats(self.transformer.forward(classes, tokens), tokens)
        return {_TRAIN_BITS: loss.detach() / math.log(2), "loss": loss}

    def measure(self, batch: Batch, _counted: int) -> Losses:
        """Bits per token of the averaged model, by sub-token too: (B) each."""
        inputs, classes = batch
        tokens = self._tokens(inputs)
        parts = bits_of_images(self.transformer.averaged, classes, tokens)
        by_part = dict(zip(self._parts, parts, strict=False))
        return {_HELD_OUT_BITS: torch.stack(parts).sum(0), **by_part}

    def samples(self, held_out: Batch) -> npt.NDArray[np.float32] | None:
        """A row of images of each of the first classes, drawn with the averaged model."""
        if self.sharded:
            return None
        tokenizer = copy.deepcopy(self.tokenizer).cpu().float()
        transformer = copy.deepcopy(self.transformer.averaged).cpu().float()
        return drawn(
            TorchModel(self.spec, tokenizer, transformer),
            self.settings.guidance,
            _ROWS_WHILE_TRAINING,
        )


def bits_of_images(transformer: Transformer, classes: Tensor, tokens: Tensor) -> list[Tensor]:
    """Mean bits of each sub-token over the positions of each image: K tensors (B).

    Args:
        transformer: The model.
        classes: (B) int64.
        tokens: (B, N, K) int64.
    """
    return [
        functional.cross_entropy(logits.movedim(-1, 1), tokens[..., k], reduction="none").mean(1)
        / math.log(2)
        for k, logits in enumerate(transformer(classes, tokens))
    ]


def drawn(model: TorchModel, guidance: Sequence[float], rows: int) -> npt.NDArray[np.float32]:
    """Images (rows * 8, 3, H, W) float32 in [-1, 1]: a row for each of the first classes."""
    with Engine(model.spec, TorchBackend(model)) as engine:
        classes = range(min(rows, engine.transformer.classes))
        parts = draw_images(engine, classes, _SAMPLES_PER_CLASS, Sampling(guidance=guidance))
        return np.concatenate([part.images for part in parts])


def train_ar(
    settings: ARSettings,
    tokenizer_file: Path,
    folder: Path,
    *,
    resume: bool,
    machine: Machine = Machine(),  # noqa: B008
    begin: Begin = silent,
    tell: Tell = lambda text: None,
) -> ARTraining:
    """Train to the end; the run folder then holds ar.pt, report.html and its pictures.

    Args:
        settings: What to train and how.
        tokenizer_file: Of the tokenizer whose tokens it is trained on.
        folder: The run folder.
        resume: Go on with the run in the folder; it may be given more epochs or steps.
        machine: Where to train.
        begin: Shows how far it is.
        tell: Called with a line at each measurement, and with what resuming changes.

    Raises:
        CheckpointError: The tokenizer file cannot be used.
        SpecError: The bits do not fit the tokenizer, or the architecture is impossible.
        InputError: The tokenizer does not fit the images, there is no such data set, or the
            folder holds another run or is in use.
        FolderError: The folder cannot be written.
        M2KitError: Training diverged.
        TrainingInterrupted: The user or the system stopped it.
    """

    def find(asked: ARSettings, begin: Begin) -> tuple[Tokenizer, Source, ModelSpec]:
        checkpoint = read_checkpoint(tokenizer_file)
        tokenizer = model_from_checkpoint(checkpoint).tokenizer
        source = token_source(asked, asked.versions, checkpoint, begin)
        transformer = asked.spec(source.grid, len(source.classes))
        check_batch(asked.batch, len(source))
        return tokenizer, source, ModelSpec(tokenizer.spec, transformer)

    with begun(
        settings, folder, machine, find, files=(AR_FILE,), resume=resume, begin=begin, tell=tell
    ) as run_begun:
        settings, fabric = run_begun.settings, run_begun.fabric
        begin, tell = run_begun.begin, run_begun.tell
        tokenizer, source, spec = run_begun.found
        assert spec.transformer is not None
        own = tokenizer.to(fabric.device)
        train_examples, held_out_tokens = source.examples(own, spec, begin)
        torch.manual_seed(settings.seed)
        recipe = ARRecipe(settings, spec, own, sharded=machine.strategy == "sharded")
        run = Run(
            recipe,
            settings,
            machine,
            fabric,
            folder,
            train_examples,
            held_out_tokens,
            choose_by=_HELD_OUT_BITS,
            begin=begin,
            tell=tell,
        )
        run.fit(run_begun.resume_from)
        like = run.best_like()
        if not run_begun.first:
            raise SystemExit(0)  # the first process writes what all have made
        best = read_best(folder / BEST_FILE, like)
        transformer = Transformer(spec.transformer, 0.0)
        transformer.load_state_dict(best["weights"]["transformer"]["average"])
        transformer.to(fabric.device).eval()
        plain = source.plain(own, spec, begin)
        codebook = codebook_of_tokens(plain, spec)
        training = ARTraining(
            data=source.title,
            chosen_step=best["best"]["step"],
            held_out_bits_per_token=_bits(transformer, held_out_tokens),
            training_bits_per_token=_bits(transformer, plain),
            codebook_usage=codebook.usage,
            classes=source.classes,
            settings=settings,
        )
        model = TorchModel(spec, own.cpu(), transformer.cpu())
        samples = _write_results(folder, model, training.to_json())
        if isinstance(plain, TokenExamples):  # a cache has no pictures
            run.unread.note(plain.pictures, plain.replaced)
        run.unread.tell(tell)
        figures = [figure_of_samples(samples, source.classes, columns=_SAMPLES_PER_CLASS)]
        if isinstance(source, FromPictures):
            figures.append(figure_of_reconstructions(own, source.held_out))
        write_page(
            folder,
            "Autoregressive model",
            training,
            panels=recipe.panels,
            figures=figures,
            codebooks={
                "training pictures": codebook,
                "held-out pictures": codebook_of_tokens(held_out_tokens, spec),
            },
            environment=environment_of(machine, fabric),
        )
    return training


def _write_results(
    folder: Path, model: TorchModel, training: JsonObject
) -> npt.NDArray[np.float32]:
    """ar.pt, and samples.png with a row per class, which it gives."""
    sampling = {"guidance": training["guidance"]}
    notes = {"spec": model.spec.to_json(), "sampling": sampling, "training": training}
    write_ar_checkpoint(folder / AR_FILE, model.tensors(), notes)
    images = drawn(model, training["guidance"], _ROWS_AT_THE_END)
    write_grid(folder / SAMPLES_FILE, images, columns=_SAMPLES_PER_CLASS)
    return images


@torch.no_grad()
def _bits(transformer: Transformer, examples: Tokens) -> float:
    """Mean over images and positions, computed where the transformer is."""
    device = next(transformer.parameters()).device
    total, images = 0.0, 0
    for tokens, labels in examples.in_order(_AT_ONCE):
        bits = bits_of_images(transformer, labels.to(device), tokens.to(device))
        total += float(torch.stack(bits).sum())
        images += len(tokens)
    return round(total / images, 4)
