"""How much memory training takes, beside what `--dry-run` says that it would.

    python -m m2kit.training.bench.memory [RUN...]

On a machine with a GPU the runs are the published presets, elsewhere small models; RUN is how the
names of those that are wanted begin. Each run is a process of its own, which takes a few steps on
noise. On a CPU, what it needed is its peak of resident memory above that before its networks were
made (Linux). On a GPU it is what torch had allocated at the peak; what its allocator had reserved
stands beside it, and the seconds of a step, the median of those after the first three. Prints a
table in Markdown.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from m2kit.config import PRESETS, ModelSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.ar import ARRecipe
from m2kit.training.recipes.machine import Machine, place
from m2kit.training.recipes.phase import Recipe
from m2kit.training.recipes.plan import Data, Plan, ar_plan, tokenizer_plan
from m2kit.training.recipes.presets import TOKENIZERS, TRANSFORMERS, published
from m2kit.training.recipes.settings import ARSettings, TokenizerSettings
from m2kit.training.recipes.tokenizer import TokenizerRecipe

_STEPS, _GPU_STEPS, _WARM_UP = 3, 10, 3
_PICTURES, _CLASSES = 1_000_000, 1000
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
    "video-128 of a quarter of its width, 2 clips of 9 x 64 x 64": (
        {**published("video-128"), "base_channels": 32, "size": 64, "frames": 9, "batch": 2},
        Machine(accelerator="cpu"),
    ),
}


def _on_gpu() -> dict[str, tuple[dict[str, Any], Machine]]:
    """Each preset with as many pictures as one GPU had in its published run or, of the AR models,
    as one of 32 would have; two clips."""
    runs: dict[str, tuple[dict[str, Any], Machine]] = {}
    for name in (*TOKENIZERS, *TRANSFORMERS):
        images = 24 if name in TRANSFORMERS else 2 if "frames" in published(name) else 8
        for precision in ("fp32", "bf16"):
            machine = Machine(accelerator="cuda", devices=1, precision=precision)
            what = "clips" if "frames" in published(name) else "pictures"
            runs[f"{name}, {images} {what}, {precision}"] = (
                {**published(name), "batch": images},
                machine,
            )
    name, images = "tokenizer-256", 8
    machine = Machine(accelerator="cuda", devices=1, precision="bf16", compile=True)
    runs[f"{name}, {images} pictures, bf16, compiled"] = (
        {**published(name), "batch": images},
        machine,
    )
    return runs


@dataclass(frozen=True, slots=True)
class _Found:
    """Megabytes, and seconds of a step."""

    planned: float
    allocated: float
    reserved: float
    seconds: float


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
    frames = values.get("frames")
    return Data("noise", True, _PICTURES, None, _CLASSES, values["size"], frames=frames)


def _measure(values: dict[str, Any], machine: Machine) -> _Found:
    plan, make = (_ar_run if "width" in values else _tokenizer_run)(values, machine)
    before = _memory("VmRSS")  # with what planning has left
    gpu = machine.accelerator == "cuda"
    seconds = _train(make(), plan, machine, _GPU_STEPS if gpu else _STEPS)
    if gpu:
        peaks = torch.cuda.max_memory_allocated() / 1e6, torch.cuda.max_memory_reserved() / 1e6
    else:
        peaks = 2 * (_memory("VmHWM") - before,)
    return _Found(plan.memory.total_bytes / 1e6, *peaks, statistics.median(seconds))


def _train(recipe: Recipe, plan: Plan, machine: Machine, steps: int) -> list[float]:
    """Take steps; seconds of each, of the last ones where there are many."""
    fabric = machine.fabric()
    device = fabric.device
    for phase in recipe.phases:
        place(fabric, phase, machine)
    recipe.statistics.to(device)
    for fixed in _fixed(recipe):
        fixed.to(device)
    frames, size = plan.data.frames, plan.data.size_pixels
    shape = (plan.batch.images_per_part, 3, *([frames] if frames else ()), size, size)
    seconds = []
    for step in range(steps):
        parts = [
            [
                torch.rand(shape, device=device) * 2 - 1,
                torch.zeros(shape[0], dtype=torch.int64, device=device),
            ]
            for _ in range(plan.batch.parts_per_device)
        ]
        started = time.perf_counter()
        for phase in recipe.phases:
            phase.network.train()
            for part in parts:
                fabric.backward(phase.losses(step, part)["loss"])
            phase.optimizer.step()
            phase.optimizer.zero_grad()
            phase.ema.update_parameters(phase.network)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[_WARM_UP:] or seconds


def _fixed(recipe: Recipe) -> list[nn.Module]:
    """The networks that a recipe needs and does not train."""
    if isinstance(recipe, ARRecipe):
        return [recipe.tokenizer]
    assert isinstance(recipe, TokenizerRecipe)
    return [recipe.perceptual] if recipe.perceptual is not None else []


def _memory(name: str) -> float:
    """A figure of this process, in megabytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        kilobytes = next(line.split()[1] for line in file if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024 / 1e6


def main() -> None:
    """Measure and print."""
    gpu, wanted = torch.cuda.is_available(), tuple(sys.argv[1:])
    if gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
        print(
            "| run | planned, MB | allocated, MB | allocated / planned | reserved, MB | s a step |"
        )
        print("|---|---|---|---|---|---|")
    else:
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
        print("| run | planned, MB | measured, MB | measured / planned |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for name, run in (_on_gpu() if gpu else _RUNS).items():
        if wanted and not name.startswith(wanted):
            continue
        with context.Pool(1) as pool:
            found = pool.apply(_measure, run)
        ratio = found.allocated / found.planned
        row = f"| {name} | {found.planned:,.0f} | {found.allocated:,.0f} | {ratio:.2f} |"
        if gpu:
            row += f" {found.reserved:,.0f} | {found.seconds:.3f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
