"""Numbers of a spec: whole, at least 1, and within what can exist. A file's notes could otherwise
ask for any amount of memory or time."""

from __future__ import annotations

from typing import Any

from m2kit.errors import SpecError


def check_whole(name: str, value: Any, most: int) -> None:
    """Raise SpecError unless `value` is a whole number in 1..most."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
        raise SpecError(f"{name} must be a whole number >= 1, at most {most}, found {value!r:.60}")


def check_wholes(name: str, values: Any, most: int, most_values: int) -> None:
    """Raise SpecError unless `values` is a tuple of 1 to `most_values` such numbers."""
    if not isinstance(values, tuple) or not 1 <= len(values) <= most_values:
        raise SpecError(
            f"{name} must be a list of at least one number, at most {most_values}, "
            f"found {values!r:.60}"
        )
    for value in values:
        check_whole(name, value, most)
