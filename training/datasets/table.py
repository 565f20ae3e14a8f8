"""The data sets by name. One of your own is a path, or a DataSet and a call of `register`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from m2kit.errors import InputError
from m2kit.token_cache import is_token_cache
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.datasets.judge import judge
from m2kit.training.datasets.sources import collection_at

DATASETS: dict[str, DataSet] = {}  # the first one is the default of `m2kit train`


def register(data: DataSet) -> None:
    """Put a data set into the table.

    Raises:
        InputError: The table has another one of its name.
    """
    if DATASETS.setdefault(data.name, data) is not data:
        raise InputError(f"there is a data set named {data.name} already; choose another name")


def dataset_named(name: str) -> DataSet:
    """The data set of a name, or at a path.

    Raises:
        InputError: There is none.
    """
    if name in DATASETS:
        return DATASETS[name]
    path = Path(name)
    if not path.exists():
        raise InputError(
            f"there is no data set {name!r}; expected {', '.join(DATASETS)}, or the path of a "
            "folder of pictures by class, of .tar shards or of films, or of an .npz",
            option="--data",
        )
    if is_token_cache(path):
        raise InputError(
            f"{path} holds tokens, of which an AR model alone is trained; name a data set of "
            "pictures",
            option="--data",
        )
    return DataSet(name, path.resolve().name, partial(collection_at, path), judge)


def cache_path(data: str) -> Path | None:
    """The token cache that a data set's name means, if it means one."""
    path = Path(data)
    return path if data not in DATASETS and path.exists() and is_token_cache(path) else None


register(DIGITS)
