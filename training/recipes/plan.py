"""What a run would be, told before anything is trained: `--dry-run`.

All of it comes from what a run itself uses: its settings, its schedule, its division of batches,
its networks (on the meta device, without values), its losses. What a run would refuse is refused in
the same words; a data set, a tokenizer and devices that are elsewhere may be assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m2kit.config import ModelSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.progress import Begin, silent
from m2kit.records import JsonObject, to_json
from m2kit.token_cache import open_cache
from m2kit.training.datasets.clips import Clips
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.dataset import latent_grid
from m2kit.training.datasets.table import cache_path
from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.ar import ARRecipe
from m2kit.training.recipes.division import Division, check_batch
from m2kit.training.recipes.examples import (
    Examples,
    check_taken,
    picture_examples,
    tokenizer_examples,
)
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.memory import Memory, step_memory
from m2kit.training.recipes.phase import Recipe
from m2kit.training.recipes.presets import PublishedData
from m2kit.training.recipes.schedule import Corner, corners
from m2kit.training.recipes.settings import ARSettings, RunSettings, TokenizerSettings
from m2kit.training.recipes.token_source import FromCache
from m2kit.training.recipes.tokenizer import TokenizerRecipe


@dataclass(frozen=True, slots=True)
class Data:
    """What a run is trained on.

    Attributes:
        title: Its name.
        assumed: It was not looked for.
        images_per_epoch: To train on.
        held_out_images: To measure on; None is not known.
        classes: How many.
        size_pixels: Height and width of the crops.
        frames: Of a clip; None where these are pictures.
        left_out: What of the data set is not trained on, in words; nothing where all is.
    """

    title: str
    assumed: bool
    images_per_epoch: int
    held_out_images: int | None
    classes: int
    size_pixels: int
    frames: int | None = None
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Devices:
    """Where it is trained.

    Attributes:
        accelerator: Of each.
        missing: This machine has no such accelerator.
        per_node: Processes of a machine, one a device.
        nodes: Machines.
        strategy: How they share the weights.
        precision: What they compute in.
    """

    accelerator: str
    missing: bool
    per_node: int
    nodes: int
    strategy: str
    precision: str

    @property
    def processes(self) -> int:
        """Over all nodes."""
        return self.per_node * self.nodes


@dataclass(frozen=True, slots=True)
class Batch:
    """How a step's images are divided.

    Attributes:
        images: Of a step, over all devices.
        images_per_device: Of them.
        parts_per_device: That these are computed in, one after the other.
        images_per_part: Of them.
    """

    images: int
    images_per_device: int
    parts_per_device: int
    images_per_part: int


@dataclass(frozen=True, slots=True)
class Network:
    """A network, or a part of one.

    Attributes:
        name: What it is.
        parameters: How many it has.
        trained: How many of them are trained.
    """

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run.

    Attributes:
        data: What on.
        devices: Where.
        batch: How a step is divided.
        steps: In all.
        steps_per_epoch: On average: batches go over the end of an epoch.
        epochs: Passes over the images, in all.
        schedule: The learning rate, where it turns; in between it changes as `decay` says.
        decay: Linear, cosine or in drops.
        networks: With their numbers of parameters.
        memory: Of each device.
    """

    data: Data
    devices: Devices
    batch: Batch
    steps: int
    steps_per_epoch: float
    epochs: float
    schedule: tuple[Corner, ...]
    decay: str
    networks: tuple[Network, ...]
    memory: Memory

    def to_json(self) -> JsonObject:
        """With the sum of the memory."""
        value = to_json(self)
        value["memory"]["total_bytes"] = self.memory.total_bytes
        return value


def found_data(settings: RunSettings, begin: Begin = silent) -> Data:
    """The data set that a run's settings name.

    Raises:
        InputError: There is none, or it is not as a data set should be.
    """
    if isinstance(settings, TokenizerSettings):
        return _data_of(tokenizer_examples(settings, begin), settings.frames)
    path = cache_path(settings.data)
    if path is not None:
        source = FromCache(open_cache(path), settings.seed, settings.one_of_group)
        count, size = len(source.cache.held_out.labels), source.cache.tokens.image_size[0]
        return Data(source.title, False, len(source), count, len(source.classes), size)
    return _data_of(picture_examples(settings))


def _data_of(found: Examples[Crops] | Examples[Clips], frames: int | None = None) -> Data:
    train, held_out = found.train, found.held_out
    return Data(
        found.title, False, len(train), len(held_out), len(found.classes), train.cut.size[0],
        frames, found.left_out,
    )  # fmt: skip


def assumed_data(settings: RunSettings, published: PublishedData) -> Data:
    """The data set of a published run, which has a size in its settings."""
    assert settings.size is not None
    frames = settings.frames if isinstance(settings, TokenizerSettings) else None
    return Data(
        published.title, True, published.pictures, published.held_out, published.classes,
        settings.size, frames,
    )  # fmt: skip


def tokenizer_plan(settings: TokenizerSettings, machine: Machine, data: Data) -> Plan:
    """What `train_tokenizer` would do.

    Raises:
        SpecError: The architecture is impossible.
        InputError: It does not fit the images, or the batch cannot be divided.
    """
    check_taken(settings, data.size_pixels)
    with torch.device("meta"):
        perceptual = PerceptualNetwork() if settings.perceptual_weight else None
        recipe = TokenizerRecipe(settings, data.images_per_epoch, perceptual)
    tokenizer = recipe.generator.network
    networks = [_network("encoder", tokenizer.encoder), _network("decoder", tokenizer.decoder)]
    networks += [_network(phase.name, phase.network) for phase in recipe.phases[1:]]
    fixed: list[nn.Module] = []
    if perceptual is not None:
        networks.append(_network("LPIPS", perceptual))
        fixed = [perceptual]
    return _plan(settings, machine, data, recipe, fixed, networks)


def ar_plan(
    settings: ARSettings, machine: Machine, data: Data, tokenizer: ImageTokenizerSpec
) -> Plan:
    """What `train_ar` would do, on the tokens of such a tokenizer.

    Raises:
        SpecError: The bits do not fit the tokenizer, or the architecture is impossible.
        InputError: The tokenizer does not fit the images, or the batch cannot be divided.
    """
    grid = latent_grid((data.size_pixels,) * 2, tokenizer)
    spec = ModelSpec(tokenizer, settings.spec(grid, data.classes))
    with torch.device("meta"):
        own = Tokenizer(tokenizer).requires_grad_(False)
        recipe = ARRecipe(settings, spec, own)
    networks = [_network("transformer", recipe.transformer.network), _network("tokenizer", own)]
    return _plan(settings, machine, data, recipe, [own], networks)


def _plan(
    settings: RunSettings,
    machine: Machine,
    data: Data,
    recipe: Recipe,
    fixed: list[nn.Module],
    networks: list[Network],
) -> Plan:
    pictures = data.images_per_epoch
    check_batch(settings.batch, pictures)
    devices = _devices(machine)
    division = Division(settings.batch, machine.accumulate, 0, devices.processes)
    steps = settings.in_steps(settings.length, pictures)
    return Plan(
        data=data,
        devices=devices,
        batch=Batch(
            images=division.batch,
            images_per_device=division.size * division.parts,
            parts_per_device=division.parts,
            images_per_part=division.size,
        ),
        steps=steps,
        steps_per_epoch=round(pictures / settings.batch, 2),
        epochs=round(steps * settings.batch / pictures, 2),
        schedule=corners(settings, pictures),
        decay=settings.decay,
        networks=tuple(networks),
        memory=step_memory(
            recipe,
            fixed,
            _part(settings, data, division.size, recipe),
            machine,
            processes=devices.processes,
            on_gpu=devices.accelerator == "cuda",
        ),
    )


def _devices(machine: Machine) -> Devices:
    here = torch.cuda.is_available()
    auto = "cuda" if here else "cpu"
    accelerator = auto if machine.accelerator == "auto" else machine.accelerator
    return Devices(
        accelerator=accelerator,
        missing=accelerator == "cuda" and not here,
        per_node=machine.devices_here,
        nodes=machine.nodes,
        strategy=machine.strategy,
        precision=machine.precision,
    )


def _part(settings: RunSettings, data: Data, images: int, recipe: Recipe) -> list[Tensor]:
    """Tensors like those of a part of a batch, on the meta device."""
    sides = (data.size_pixels,) * 2
    labels = torch.empty(images, dtype=torch.int64, device="meta")
    if isinstance(settings, ARSettings) and settings.versions:
        assert isinstance(recipe, ARRecipe)
        grid = latent_grid(sides, recipe.spec.tokenizer)
        shape = (images, grid[0] * grid[1], len(settings.bits))
        return [torch.empty(shape, dtype=torch.int64, device="meta"), labels]
    time = () if data.frames is None else (data.frames,)
    return [torch.empty(images, 3, *time, *sides, device="meta"), labels]


def _network(name: str, network: nn.Module) -> Network:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return Network(name, sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))
