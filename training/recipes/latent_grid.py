"""Which latent grid a tokenizer makes of a data set's images."""

from __future__ import annotations

from m2kit.config import TokenizerSpec
from m2kit.errors import InputError
from m2kit.training.datasets.dataset import DataSet


def latent_grid(spec: TokenizerSpec, data: DataSet) -> tuple[int, int]:
    """The latent grid (h, w).

    Raises:
        InputError: The tokenizer's factor leaves no whole grid of two positions or more.
    """
    height, width = data.image_size
    factor = spec.downsampling
    if height % factor or width % factor or (height // factor) * (width // factor) < 2:
        raise InputError(
            f"a tokenizer of {len(spec.channel_multipliers)} levels divides each side by {factor}: "
            f"the {height} x {width} images of {data.name} must leave two whole latent positions "
            "or more; give `m2kit train tokenizer` fewer --channel-multipliers"
        )
    return height // factor, width // factor
