"""Which sizes of pictures a tokenizer takes, and how many latent positions they have: along each
axis the first position stands for `first_strides` pixels and every other for `strides`, which
differ where an axis is causal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2kit.families.family import TokenizerSpec


def size_of_grid(spec: TokenizerSpec, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels along each axis that a latent grid covers."""
    pairs = zip(grid, spec.first_strides, spec.strides, strict=True)
    return tuple(first + (n - 1) * stride for n, first, stride in pairs)


def grid_of_size(spec: TokenizerSpec, size: tuple[int, ...]) -> tuple[int, ...]:
    """The latent grid of a picture; sizes between two grids have the smaller one."""
    pairs = zip(size, spec.first_strides, spec.strides, strict=True)
    return tuple((n - first) // stride + 1 for n, first, stride in pairs)


def fits(spec: TokenizerSpec, size: tuple[int, ...]) -> bool:
    """Whether there is a grid that covers just this size."""
    return not misfit(spec, size)


def misfit(spec: TokenizerSpec, size: tuple[int, ...]) -> str:
    """Why no grid covers a size, in words, with the next lengths of a causal axis that fit; nothing
    where one does."""
    axes, firsts, strides = spec.axes, spec.first_strides, spec.strides
    if len(size) != len(axes):
        return f"a size has {len(axes)} numbers, {', '.join(axes)}, found {_by(size)}"
    for axis, n, first, stride in zip(axes[:-2], size, firsts, strides, strict=False):
        if n < first or (n - first) % stride:
            steps = (n - first) // stride
            valid = " and ".join(str(first + k * stride) for k in (steps, steps + 1) if k >= 0)
            return (
                f"{axis} must be {first} plus a multiple of {stride}, found {n} (next valid: "
                f"{valid})"
            )
    sides = range(len(axes))[-2:]
    if all(size[i] > 0 and size[i] % strides[i] == 0 for i in sides):
        return ""
    factors = [strides[i] for i in sides]
    factors = factors[:1] if len(set(factors)) == 1 else factors
    return f"image sides must be multiples of {_by(factors)}, found {_by(size[i] for i in sides)}"


def _by(numbers: Iterable[int]) -> str:
    return " x ".join(map(str, numbers))
