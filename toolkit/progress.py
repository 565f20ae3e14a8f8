"""How long work tells its caller what it does and how far it is; the caller may draw a bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]  # so many more are done


class Begin(Protocol):
    """Called with the name of each stage as it begins."""

    def __call__(self, stage: str, total: int | None = None) -> Advance:
        """Begin a stage of `total` positions (None: it is not counted); ends the one before."""


def silent(stage: str, total: int | None = None) -> Advance:
    """A `Begin` that shows nothing."""
    return lambda count: None
