"""What a run trains on and is measured on, of the pictures of a data set."""

from __future__ import annotations

from m2kit.errors import InputError
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.pictures import Collection
from m2kit.training.recipes.settings import RunSettings


def examples(settings: RunSettings, collection: Collection) -> tuple[Crops, Crops]:
    """Training crops as the settings have them, and held-out crops, at the centre and unchanged.

    Raises:
        InputError: The settings name no size, and the pictures have none in common; or none of
            those to train on, or of those held out, can be read.
    """
    size = settings.size or collection.size
    if size is None:
        raise InputError(
            f"the pictures of {settings.data} are of several sizes; name the one to train on",
            option="--size",
        )
    cut = Cut((size, size), settings.place, settings.flip, settings.warp, settings.seed)
    train = Crops(collection.train, cut, one_of_group=settings.one_of_group)
    held_out = Crops(collection.held_out, Cut((size, size)))
    for crops in (train, held_out):
        crops[0]  # before a run that could not be measured begins
    return train, held_out
