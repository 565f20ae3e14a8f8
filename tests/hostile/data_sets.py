"""What a data set that no friend made is held to: one clear line, or pictures that are counted."""

import os

import pytest

from m2kit.errors import InputError
from m2kit.training.datasets.crops import READ, Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.table import dataset_named


def unreadable(path):
    """The names of all pictures of a data set that cannot be read; all items can be made."""
    names = set()
    collection = dataset_named(str(path)).load()
    for part in (collection.train, collection.held_out):
        crops = Crops(part, Cut((16, 16)))
        for number in range(len(crops)):
            crop, label, replaced = crops[number]
            assert crop.shape == (3, 16, 16)
            assert crop.isfinite().all()
            assert 0 <= label < len(collection.classes)
            if replaced != READ:
                names.add(part.name(int(replaced)))
    return names


def check(path, outcome):
    """Hold a data set against the message it is to be refused with, or its unreadable pictures."""
    if not isinstance(outcome, str):
        assert {os.path.basename(name) for name in unreadable(path)} == set(outcome)
        return
    with pytest.raises(InputError, match=outcome) as refused:
        unreadable(path)
    assert "\n" not in str(refused.value)
