"""Trains the image or the video tokenizer: L1 + LPIPS + generator loss + LFQ entropy + commitment,
against a discriminator that is trained on the same reconstructions; Adam, EMA. Every term can be
left out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.records import JsonObject
from m2kit.runtime.codebook import CodebookCount
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.datasets.clips import Clips
from m2kit.training.datasets.crops import Crops
from m2kit.training.evaluation.tokenizer import codebook_of_crops, psnr_of_crops
from m2kit.training.losses.adversary import LeCam, generator_loss, hinge_loss
from m2kit.training.losses.entropy import entropies
from m2kit.training.models import lfq
from m2kit.training.models.discriminator import discriminator
from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.models.tokenizer import Tokenizer, frames_of
from m2kit.training.recipes.beginning import begun
from m2kit.training.recipes.division import check_batch
from m2kit.training.recipes.environment import environment_of
from m2kit.training.recipes.examples import Examples, tokenizer_examples
from m2kit.training.recipes.initial import (
    DISCRIMINATOR,
    load_discriminator,
    load_tokenizer,
    read_initial,
)
from m2kit.training.recipes.loop import Run, Tell
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.page import figure_of_reconstructions, write_page
from m2kit.training.recipes.phase import Batch, Gathered, Losses, Phase, Recipe
from m2kit.training.recipes.run_folder import TOKENIZER_FILES, Trained
from m2kit.training.recipes.saved_state import weights_of
from m2kit.training.recipes.settings import TokenizerSettings

_COLUMNS = 10  # of samples.png, where it shows pictures
_CLIPS = 4  # that it shows, a row of frames each


@dataclass(frozen=True, slots=True)
class TokenizerTraining(Trained):
    """What came of a tokenizer run.

    Attributes:
        codebook_usage: Share of the codes that the training images use.
        codebook_perplexity: As many equally likely codes would have the entropy of theirs.
        dead_bits: Bits that have one sign in all of them.
        held_out_psnr_db: Of the held-out images' reconstructions: the mean over images, on 8
            bits a colour, where metrics.csv takes floats.
    """

    settings: TokenizerSettings
    codebook_usage: float
    codebook_perplexity: float
    dead_bits: tuple[int, ...]
    held_out_psnr_db: float


class TokenizerRecipe(Recipe):
    """The generator's step and then, on the same reconstructions, the discriminator's.

    Args:
        settings: Of the run.
        pictures: How many an epoch has.
        perceptual: LPIPS, where it has a weight.
        init: The checkpoint file to start from, if any.
    """

    def __init__(
        self,
        settings: TokenizerSettings,
        pictures: int,
        perceptual: PerceptualNetwork | None = None,
        init: Path | None = None,
    ) -> None:
        self.settings, self.perceptual = settings, perceptual
        of_clips = settings.frames is not None
        self.columns = settings.frames or _COLUMNS
        self.shown = _CLIPS if of_clips else _COLUMNS
        self.statistics = self.lecam = LeCam()
        self._rebuilt: deque[tuple[Tensor, Tensor]] = deque()  # images, and what became of them
        self._count = self._no_codes()  # of held-out images, since the last measurement
        tokenizer = Tokenizer(settings.spec)
        if init is not None:
            load_tokenizer(init, tokenizer, settings.spec)
        tokenizer.encoder.requires_grad_(not settings.freeze_encoder)
        self.generator = Phase(
            "generator",
            tokenizer,
            self._generator_losses,
            self._optimizer,
            ema_decay=settings.ema_decay,
            clip=settings.clip,
        )
        self.phases = [self.generator]
        panels = {
            "reconstruction": ["l1", "held_out_l1", *(["perceptual"] if perceptual else [])],
            "held-out PSNR (dB)": ["held_out_psnr"],
            "share of codes used": ["held_out_codebook_usage"],
            "perplexity of codes": ["held_out_perplexity"],
            "entropy (nats)": ["entropy_per_position", "entropy_of_mean"],
            "commitment": ["commitment"],
        }
        norms = ["generator_gradient_norm"]
        if settings.adversary != "none":
            judge = discriminator(settings.adversary, settings.adversary_width, of_clips=of_clips)
            if init is not None:
                load_discriminator(init, judge)
            self.discriminator: Phase[nn.Module] = Phase(
                "discriminator",
                judge,
                self._discriminator_losses,
                self._optimizer,
                ema_decay=settings.ema_decay,
                clip=settings.clip,
                begins=settings.in_steps(settings.adversary_from, pictures),
            )
            self.phases.append(self.discriminator)
            panels |= {
                "adversary": ["generator_loss", "hinge", "lecam"],
                "logits": ["logits_real", "logits_fake"],
            }
            norms.append("discriminator_gradient_norm")
        self.panels = {**panels, "gradient norm": norms, "learning rate": ["learning_rate"]}

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in network.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, self.settings.learning_rate, (0.5, 0.9))

    def _generator_losses(self, step: int, batch: Batch) -> Losses:
        settings, (image, *_) = self.settings, batch
        rebuilt, latent = self.generator.forward(image)
        entropy = entropies(
            latent,
            settings.entropy_temperature,
            group_bits=settings.entropy_group_bits,
            over_processes=settings.over_processes,
        )
        losses = {
            "l1": (rebuilt - image).abs().mean(),
            "entropy_per_position": entropy.per_position,
            "entropy_of_mean": entropy.of_mean,
            "commitment": (latent - lfq.quantize(latent).detach()).square().mean(),
        }
        loss = (
            settings.l1_weight * losses["l1"]
            + settings.entropy_weight * (entropy.per_position - entropy.of_mean)
            + settings.commitment_weight * losses["commitment"]
        )
        if self.perceptual is not None:
            with self.generator.autocast():
                losses["perceptual"] = self.perceptual(image, rebuilt).mean()
            loss = loss + settings.perceptual_weight * losses["perceptual"]
        if settings.adversary != "none" and step >= self.discriminator.begins:
            losses["generator_loss"] = generator_loss(self.discriminator.judge(rebuilt))
            loss = loss + settings.adversary_weight * losses["generator_loss"]
            self._rebuilt.append((image, rebuilt.detach()))
        return {**losses, "loss": loss}

    def _discriminator_losses(self, _step: int, _batch: Batch) -> Losses:
        image, rebuilt = self._rebuilt.popleft()
        real, fake = self.discriminator.forward(image), self.discriminator.forward(rebuilt)
        self.lecam.update(real, fake, over_processes=self.settings.over_processes)
        losses = {"hinge": hinge_loss(real, fake), "lecam": self.lecam(real, fake)}
        loss = losses["hinge"] + self.settings.lecam_weight * losses["lecam"]
        logits = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        return {**losses, **logits, "loss": loss}

    def _no_codes(self) -> CodebookCount:
        spec = self.settings.spec
        return CodebookCount(spec.vocabularies, spec.bit_order)

    def measure(self, batch: Batch, counted: int) -> Losses:
        """L1 and PSNR of the averaged model's reconstructions, of clips the mean over frames: (B)
        each; counts codes, too."""
        image, *_ = batch
        tokenizer = self.generator.averaged
        rebuilt, latent = tokenizer(image)
        tokens = tokenizer.tokens(tokenizer.quantize(latent), tokenizer.spec.vocabularies)
        self._count.add(tokens[:counted].cpu().numpy())
        difference = frames_of(rebuilt.clamp(-1, 1) - image).flatten(1)
        peak = 10 * torch.log10(4 / difference.square().mean(1).clamp_min(1e-10))
        return {
            "held_out_l1": (rebuilt - image).flatten(1).abs().mean(1),
            "held_out_psnr": peak.view(len(image), -1).mean(1),
        }

    def summary(self, gathered: Gathered) -> dict[str, float]:
        """How held-out images use the codebook; dead bits are the remark."""
        counts = gathered(self._count)
        self._count = self._no_codes()
        for count in counts[1:]:
            counts[0].join(count)
        report = counts[0].report()
        dead = report.dead_bits_text()
        self.remark = f"; dead bits on held-out pictures: {dead}" if dead else ""
        return {
            "held_out_codebook_usage": report.usage,
            "held_out_perplexity": report.perplexity,
        }

    def samples(self, held_out: Batch) -> npt.NDArray[np.float32]:
        """Images above their reconstructions, or clips a row of frames each."""
        image, *_ = held_out
        rebuilt, _latent = self.generator.averaged(image)
        both = image, rebuilt.clamp(-1, 1)
        rows = (
            torch.cat(both) if image.dim() == 4 else frames_of(torch.stack(both, 1).flatten(0, 1))
        )
        return rows.float().cpu().numpy()


def train_tokenizer(
    settings: TokenizerSettings,
    folder: Path,
    *,
    resume: bool,
    machine: Machine = Machine(),  # noqa: B008
    perceptual: PerceptualNetwork | None = None,
    init: Path | None = None,
    begin: Begin = silent,
    tell: Tell = lambda text: None,
) -> TokenizerTraining:
    """Train to the end; the run folder then holds tokenizer.pt, report.html and its pictures.

    Args:
        settings: What to train and how.
        folder: The run folder.
        resume: Go on with the run in the folder; it may be given more epochs or steps.
        machine: Where to train.
        perceptual: LPIPS with its weights, if it has a weight.
        init: The checkpoint file to start from, whose digest the settings have.
        begin: Shows how far it is.
        tell: Called with a line at each measurement, and with what resuming changes.

    Raises:
        SpecError: The architecture is impossible.
        CheckpointError: The file to start from cannot be used.
        InputError: It does not fit the images, there is no such data set, or the folder holds
            another run or is in use.
        FolderError: The folder cannot be written.
        M2KitError: Training diverged.
        TrainingInterrupted: The user or the system stopped it.
    """
    if (perceptual is not None) != bool(settings.perceptual_weight):
        raise InputError("a perceptual weight needs its network, and the network a weight")
    if init is not None:
        read_initial(init, settings.spec)  # before films are looked through, which may take long
    with begun(
        settings, folder, machine, _examples, files=TOKENIZER_FILES, resume=resume, begin=begin,
        tell=tell,
    ) as run_begun:  # fmt: skip
        settings, fabric, tell = run_begun.settings, run_begun.fabric, run_begun.tell
        found = run_begun.found
        if found.left_out:
            tell(found.left_out)
        train, held_out = found.train, found.held_out
        torch.manual_seed(settings.seed)
        if perceptual is not None:
            perceptual.to(fabric.device, machine.dtype)
        recipe = TokenizerRecipe(settings, len(train), perceptual, init)
        run = Run(
            recipe, settings, machine, fabric, folder, train, held_out, begin=run_begun.begin,
            tell=tell,
        )  # fmt: skip
        run.fit(run_begun.resume_from)
        weights = weights_of(recipe)
        if not run_begun.first:
            raise SystemExit(0)  # the first process writes what all have made
        tokenizer = Tokenizer(settings.spec)
        tokenizer.load_state_dict(weights["generator"]["average"])
        tokenizer.to(fabric.device).eval()
        codebook = codebook_of_crops(tokenizer, train, run.unread.note)
        training = TokenizerTraining(
            data=found.title,
            codebook_usage=codebook.usage,
            codebook_perplexity=round(codebook.perplexity, 2),
            dead_bits=codebook.dead_bits,
            held_out_psnr_db=psnr_of_crops(tokenizer, held_out, run.unread.note),
            settings=settings,
        )
        notes = {"spec": ModelSpec(settings.spec, None).to_json(), "training": training.to_json()}
        _write_results(folder, recipe, weights, notes)
        run.unread.tell(tell)
        write_page(
            folder,
            "Tokenizer" if settings.frames is None else "Video tokenizer",
            training,
            panels=recipe.panels,
            figures=[figure_of_reconstructions(tokenizer, held_out)],
            codebooks={
                "training pictures": codebook,
                "held-out pictures": codebook_of_crops(tokenizer, held_out),
            },
            environment=environment_of(machine, fabric),
        )
    return training


def _examples(settings: TokenizerSettings, begin: Begin) -> Examples[Crops] | Examples[Clips]:
    """What the networks take, and enough of it for a batch."""
    found = tokenizer_examples(settings, begin)
    check_batch(settings.batch, len(found.train))
    return found


def _write_results(
    folder: Path, recipe: TokenizerRecipe, weights: dict[str, Any], notes: JsonObject
) -> None:
    """tokenizer.pt, as models are released; with an adversary tokenizer.train.pt too, from which a
    training can go on, with the losses' networks."""
    checkpoint, training = (folder / name for name in TOKENIZER_FILES)
    decay = recipe.settings.ema_decay
    live, ema = weights["generator"]["network"], weights["generator"]["average"]
    write_tokenizer_checkpoint(checkpoint, live, ema, ema_decay=decay, notes=notes)
    if "discriminator" not in weights:
        return
    theirs = {kind: _prefixed(part) for kind, part in weights["discriminator"].items()}
    live = {**live, **theirs["network"]}
    if recipe.perceptual is not None:
        own = recipe.perceptual.state_dict()
        live |= {f"loss.perceptual_loss.{name}": tensor for name, tensor in own.items()}
    parameters = {DISCRIMINATOR + n for n, _ in recipe.discriminator.network.named_parameters()}
    averaged = {name: t for name, t in theirs["average"].items() if name in parameters}
    write_tokenizer_checkpoint(training, live, {**ema, **averaged}, ema_decay=decay, notes=notes)


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {DISCRIMINATOR + name: tensor for name, tensor in state.items()}
