"""Which latent grid a tokenizer makes of a data set's images."""

from __future__ import annotations

from m2kit.errors import InputError
from m2kit.families.family import TokenizerSpec
from m2kit.training.datasets.dataset import DataSet


def latent_grid(spec: TokenizerSpec, data: DataSet) -> tuple[int, ...]:
    """The latent grid, such as (h, w).

    Raises:
        InputError: The tokenizer's strides leave no whole grid, or one that it does not take.
    """
    size, strides = data.image_size, spec.strides
    whole = len(size) == len(strides) and not any(
        n % stride for n, stride in zip(size, strides, strict=True)
    )
    grid = tuple(n // stride for n, stride in zip(size, strides, strict=False))
    if not whole or 0 in grid:
        raise InputError(
            f"this tokenizer divides images by {' x '.join(map(str, strides))}: the "
            f"{' x '.join(map(str, size))} images of {data.name} must leave whole latent "
            "positions; give `m2kit train tokenizer` fewer --channel-multipliers"
        )
    spec.check_grid(grid)
    return grid
