"""What a data set is: a record of its title, its loader and its judge.

Nothing here imports torch: the command line lists the data sets where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.families.sizes import grid_of_size, misfit
from m2kit.runtime.arguments import check_pictures

if TYPE_CHECKING:
    from m2kit.families.family import TokenizerSpec
    from m2kit.training.datasets.pictures import Collection

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Recogniser = Callable[[Images], Labels]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, before any of its pictures is read.

    Attributes:
        name: What `--data` calls it: a name in the table, or a path.
        title: What checkpoints note about what they were trained on.
        loader: Finds its pictures; the split is part of the data set, so that every run and report
            uses the same one.
        judge: Fits a recogniser to training images (n, 3, H, W) float32 in [-1, 1] and their
            labels (n) int64: it takes such images to their classes (n) int64. None where the data
            set has no judge.
    """

    name: str
    title: str
    loader: Callable[[], Collection]
    judge: Callable[[Images, Labels], Recogniser] | None = None

    def load(self) -> Collection:
        """Its training pictures and held-out pictures.

        Raises:
            InputError: They are not what the record says, or there are none.
        """
        collection = self.loader()
        for part in (collection.train, collection.held_out):
            if not len(part.labels):
                raise InputError(
                    f"the data set {self.name} has {len(collection.train.labels)} pictures to "
                    f"train on and {len(collection.held_out.labels)} held out; it needs both: give "
                    "it a class of two pictures or more, or divide it into train and val"
                )
            least, most = int(part.labels.min()), int(part.labels.max())
            if least < 0 or most >= len(collection.classes):
                raise InputError(
                    f"the data set {self.name} has {len(collection.classes)} classes, its labels "
                    f"are {least}..{most}; correct its classes or its loader"
                )
        return collection


def latent_grid(size: tuple[int, ...], spec: TokenizerSpec) -> tuple[int, ...]:
    """The grid that a tokenizer makes of images (h, w) or of clips (t, h, w).

    Args:
        size: Of an image (H, W) or a clip (T, H, W), in pixels.
        spec: The tokenizer.

    Raises:
        InputError: Its strides leave no whole grid, or one that it does not take; it takes clips,
            and these are images, or the other way round.
    """
    if len(size) == 2:
        check_pictures(spec)
    if wrong := misfit(spec, size):
        raise InputError(
            f"{wrong}; train a tokenizer of fewer levels, or change the size",
            option="--channel-multipliers, --size" + ", --frames" * (len(size) == 3),
        )
    grid = grid_of_size(spec, size)
    spec.check_grid(grid)
    return grid
