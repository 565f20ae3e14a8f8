"""The pictures of a run that could not be read. The next ones stand in for them, so that processes
stay in step; who trains is told of all of them at the end, however often the run was stopped."""

from __future__ import annotations

from collections.abc import Callable

from lightning.fabric import Fabric
from torch import Tensor

from m2kit.training.datasets.crops import READ
from m2kit.training.datasets.pictures import Pictures, line_of_unread
from m2kit.training.recipes.processes import gathered

_BETWEEN = "\0"  # in no path


class Unread:
    """Names of pictures, once each."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, pictures: Pictures, replaced: Tensor) -> None:
        """Note the pictures of a batch.

        Args:
            pictures: What the batch was cut from.
            replaced: READ, or the index of an unread picture, for each of its items.
        """
        self._names.update(pictures.name(index) for index in replaced[replaced != READ].tolist())

    def share(self, fabric: Fabric) -> None:
        """Take over what the other processes of the run have noted."""
        self._names = set().union(*gathered(fabric, self._names))

    @property
    def text(self) -> str:
        """The names, as the run's state holds them."""
        return _BETWEEN.join(sorted(self._names))

    def restore(self, text: str) -> None:
        """Add what `text` was when the run was saved."""
        self._names.update(text.split(_BETWEEN) if text else ())

    def tell(self, tell: Callable[[str], None]) -> None:
        """Say how many there are, with the names of the first ones, if there are any."""
        names = sorted(self._names)
        if names:
            tell(line_of_unread(names))
