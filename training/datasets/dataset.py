"""What a data set is: a record of its classes, image size, splits and loaders.

Nothing here imports torch: the command line lists the data sets where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from m2kit.families.family import TokenizerSpec

Recogniser = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images (n, 3, H, W) float32 in [-1, 1] and labels (n) int64."""

    images: Tensor
    labels: Tensor


Splits = tuple[LabelledImages, LabelledImages]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, before any of its images is read.

    Attributes:
        name: What `--data` calls it.
        title: What checkpoints note about what they were trained on.
        classes: Labels are 0..classes-1.
        image_size: Height and width in pixels.
        loader: Reads training images and held-out images; the split is part of the data set, so
            that every run and report uses the same one.
        vary: (n, 3, H, W) images in [-1, 1], a little changed at random, of the same classes.
        judge: Fits a recogniser to training images: it takes (n, 3, H, W) float32 images in
            [-1, 1] to their classes (n) int64. None where the data set has no judge.
    """

    name: str
    title: str
    classes: int
    image_size: tuple[int, int]
    loader: Callable[[], Splits]
    vary: Callable[[Tensor, torch.Generator], Tensor]
    judge: Callable[[LabelledImages], Recogniser] | None = None

    def load(self) -> Splits:
        """Training images and held-out images.

        Raises:
            InputError: They are not what the record says.
        """
        splits = self.loader()
        for part in splits:
            expected = (len(part.labels), 3, *self.image_size)
            if tuple(part.images.shape) != expected or not len(part.labels):
                raise InputError(
                    f"the data set {self.name} says images {list(expected)}, its loader gave "
                    f"{list(part.images.shape)}; correct its image size or its loader"
                )
            least, most = int(part.labels.min()), int(part.labels.max())
            if least < 0 or most >= self.classes:
                raise InputError(
                    f"the data set {self.name} says {self.classes} classes, its labels are "
                    f"{least}..{most}; correct its number of classes or its loader"
                )
        return splits

    def latent_grid(self, spec: TokenizerSpec) -> tuple[int, ...]:
        """The grid that a tokenizer makes of the images, such as (h, w).

        Raises:
            InputError: Its strides leave no whole grid, or one that it does not take.
        """
        size, strides = self.image_size, spec.strides
        grid = tuple(n // stride for n, stride in zip(size, strides, strict=False))
        whole = tuple(n * stride for n, stride in zip(grid, strides, strict=False))
        if whole != size or len(size) != len(strides) or 0 in grid:
            raise InputError(
                f"this tokenizer divides images by {' x '.join(map(str, strides))}: the "
                f"{' x '.join(map(str, size))} images of {self.name} must leave whole latent "
                "positions; train a tokenizer of fewer levels",
                option="--channel-multipliers",
            )
        spec.check_grid(grid)
        return grid
