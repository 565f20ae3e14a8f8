"""Waiting for another thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so.

    Raises:
        AssertionError: It is not so after 20 s.
    """
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come about")
