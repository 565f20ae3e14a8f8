"""The data sets by name. One of your own is a DataSet and a call of `register`."""

from __future__ import annotations

from m2kit.errors import InputError
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.digits import DIGITS

DATASETS: dict[str, DataSet] = {}  # the first one is the default of `m2kit train`


def register(data: DataSet) -> None:
    """Put a data set into the table.

    Raises:
        InputError: The table has another one of its name.
    """
    if DATASETS.setdefault(data.name, data) is not data:
        raise InputError(f"there is a data set named {data.name} already; choose another name")


def dataset_named(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        InputError: There is none.
    """
    if name not in DATASETS:
        raise InputError(f"there is no data set {name!r}; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]


register(DIGITS)
