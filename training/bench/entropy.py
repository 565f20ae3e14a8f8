"""Time and memory of the forms of the LFQ entropy term, forward and backward.

    python -m m2kit.training.bench.entropy           # 8 images of 16 x 16 tokens, 18 bits
    python -m m2kit.training.bench.entropy 12 8 16   # bits, images, tokens a side

Each form runs in a process of its own, whose peak of resident memory over that before the first
step is what it needs. Prints a table in Markdown.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from m2kit.training.losses.entropy import Entropies, entropies, enumerated_entropies

_FORMS: dict[str, Callable[[torch.Tensor], Entropies]] = {
    "exact, two halves of the bits": entropies,
    "groups of 9 bits (a bound)": lambda latent: entropies(latent, group_bits=9),
    "all codes of every position": enumerated_entropies,
}
_STEPS = 3


def measure(form: str, shape: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Seconds of a step, megabytes above the start, and both entropies.

    Args:
        form: One of those of the table.
        shape: (B, bits, h, w) of the latent.
    """
    latent = (
        0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    before, seconds = _peak(), []
    for _ in range(_STEPS):
        began = time.perf_counter()
        found = _FORMS[form](latent)
        (found.per_position - found.of_mean).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
    return min(seconds), _peak() - before, found.per_position.item(), found.of_mean.item()


def _peak() -> float:
    """Of this program in MB; getrusage gives that of its parent if it was larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def main(bits: int = 18, images: int = 8, side: int = 16) -> None:
    """Measure and print."""
    print(f"{images * side * side} tokens of {bits} bits, {torch.get_num_threads()} threads\n")
    print("| form | s a step | MB | entropy of a position | of the mean |\n|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for form in _FORMS:
        with context.Pool(1) as pool:
            seconds, megabytes, position, mean = pool.apply(
                measure, (form, (images, bits, side, side))
            )
        print(f"| {form} | {seconds:.3f} | {megabytes:.0f} | {position:.4f} | {mean:.4f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
