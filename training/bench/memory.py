"""How much memory training takes, beside what `--dry-run` says that it would.

    python -m m2kit.training.bench.memory        # small models, on a CPU

Each run is a process of its own, which takes three steps on noise; what it needed is its peak of
resident memory above that before its networks were made (Linux). Prints a table in Markdown.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from m2kit.config import PRESETS, ModelSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.ar import ARRecipe
from m2kit.training.recipes.machine import Machine, place
from m2kit.training.recipes.phase import Recipe
from m2kit.training.recipes.plan import Data, Plan, ar_plan, tokenizer_plan
from m2kit.training.recipes.presets import published
from m2kit.training.recipes.settings import ARSettings, TokenizerSettings
from m2kit.training.recipes.tokenizer import TokenizerRecipe

_STEPS, _PICTURES, _CLASSES = 3, 1000, 10
_TOKENIZER = {**published("tokenizer-256"), "size": 64, "batch": 16, "base_channels": 64}
_RUNS: dict[str, tuple[dict[str, Any], Machine]] = {
    "tokenizer-256 of half its width, 16 pictures of 64": (_TOKENIZER, Machine(accelerator="cpu")),
    "the same in two parts": (_TOKENIZER, Machine(accelerator="cpu", accumulate=2)),
    "the same in bf16": (_TOKENIZER, Machine(accelerator="cpu", precision="bf16")),
    "the same without adversary and LPIPS": (
        {**_TOKENIZER, "adversary": "none", "perceptual_weight": 0.0},
        Machine(accelerator="cpu"),
    ),
    "ar-b of 6 layers, 16 pictures of 128": (
        {**published("ar-b"), "inter_layers": 6, "size": 128, "batch": 16},
        Machine(accelerator="cpu"),
    ),
}


def _tokenizer_run(values: dict[str, Any], machine: Machine) -> tuple[Plan, Callable[[], Recipe]]:
    """What it would be, and what makes it."""
    settings = TokenizerSettings(data="noise", seed=0, **values)

    def recipe() -> Recipe:
        network = PerceptualNetwork() if settings.perceptual_weight else None
        return TokenizerRecipe(settings, _PICTURES, network)

    return tokenizer_plan(settings, machine, _data(values)), recipe


def _ar_run(values: dict[str, Any], machine: Machine) -> tuple[Plan, Callable[[], Recipe]]:
    settings = ARSettings(data="noise", seed=0, tokenizer_sha256="", **values)
    tokenizer = PRESETS["tokenizer-256"].spec.tokenizer
    assert isinstance(tokenizer, ImageTokenizerSpec)
    side = values["size"] // tokenizer.strides[0]
    spec = ModelSpec(tokenizer, settings.spec((side, side), _CLASSES))

    def recipe() -> Recipe:
        return ARRecipe(settings, spec, Tokenizer(tokenizer).requires_grad_(False))

    return ar_plan(settings, machine, _data(values), tokenizer), recipe


def _data(values: dict[str, Any]) -> Data:
    return Data("noise", True, _PICTURES, None, _CLASSES, values["size"])


def _measure(run: str) -> tuple[float, float]:
    """Megabytes at the peak above the start, and planned."""
    values, machine = _RUNS[run]
    plan, make = (_ar_run if "width" in values else _tokenizer_run)(values, machine)
    before = _memory("VmRSS")  # with what planning has left
    _train(make(), plan, machine)
    return _memory("VmHWM") - before, plan.memory.total_bytes / 1e6


def _train(recipe: Recipe, plan: Plan, machine: Machine) -> None:
    fabric = machine.fabric()
    for phase in recipe.phases:
        place(fabric, phase, machine)
    images, size = plan.batch.images_per_part, plan.data.size_pixels
    for step in range(_STEPS):
        parts = [
            [torch.rand(images, 3, size, size) * 2 - 1, torch.zeros(images, dtype=torch.int64)]
            for _ in range(plan.batch.parts_per_device)
        ]
        for phase in recipe.phases:
            phase.network.train()
            for part in parts:
                fabric.backward(phase.losses(step, part)["loss"])
            phase.optimizer.step()
            phase.optimizer.zero_grad()
            phase.ema.update_parameters(phase.network)


def _memory(name: str) -> float:
    """A figure of this process, in megabytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        kilobytes = next(line.split()[1] for line in file if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024 / 1e6


def main() -> None:
    """Measure and print."""
    print(f"{torch.get_num_threads()} threads\n")
    print("| run | planned, MB | measured, MB | measured / planned |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for run in _RUNS:
        with context.Pool(1) as pool:
            measured, planned = pool.apply(_measure, (run,))
        print(f"| {run} | {planned:,.0f} | {measured:,.0f} | {measured / planned:.2f} |")


if __name__ == "__main__":
    main()
