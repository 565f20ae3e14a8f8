"""Whether what a file holds is like what it should hold: the same names, lengths, shapes and kinds
all through, whatever the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SHOWN = 80  # characters of a value or a path that are shown
_MOST = 2**53  # of a count


class Unlike(Exception):
    """A value that is not like the expected one; the message says where."""


def require_like(found: Any, expected: Any, path: str = "") -> None:
    """Compare nested dicts, lists and tuples of tensors, numbers, texts, flags and None.

    Args:
        found: What a file holds.
        expected: The like of it. A type stands for any value of that type; whole numbers are
            counts, which are not negative, and other numbers are finite.
        path: Of the value, for messages.

    Raises:
        Unlike: It is not.
    """
    if isinstance(expected, Tensor):
        _require(_tensor(found) == _tensor(expected), found, f"{_tensor(expected)}", path)
    elif isinstance(expected, Mapping):
        require_names(found, expected, path)
        for name, item in expected.items():
            require_like(found[name], item, _join(path, name))
    elif isinstance(expected, (list, tuple)):
        kind = type(expected)
        alike = isinstance(found, kind) and len(found) == len(expected)
        _require(alike, found, f"a {kind.__name__} of {len(expected)}", path)
        for index, item in enumerate(expected):
            require_like(found[index], item, f"{path}[{index}]")
    elif isinstance(expected, type):
        _require(type(found) is expected, found, f"a {expected.__name__}", path)
    else:
        _require(type(found) is type(expected) and _in_range(found), found, _kind(expected), path)


def require_names(found: Any, names: Mapping[Any, Any], path: str) -> None:
    """Require a dict that has each of the names and no other.

    Raises:
        Unlike: It is none.
    """
    _require(isinstance(found, Mapping), found, "a dict", path)
    odd = sorted(set(found) ^ set(names), key=str)
    if odd:
        raise Unlike(f"{_join(path, odd[0])} is {'missing' if odd[0] in names else 'not known'}")


def require_equal(found: Any, expected: Any, path: str) -> None:
    """Require plain values to be the same.

    Raises:
        Unlike: They are not.
    """
    require_like(found, expected, path)
    _require(found == expected, found, shown(expected), path)


def shown(value: Any) -> str:
    """A value in a few words."""
    return (_tensor(value) or f"{type(value).__name__} {value!r}")[:_SHOWN]


def _require(alike: bool, found: Any, expected: str, path: str) -> None:
    if not alike:
        raise Unlike(f"{path or 'the file'}: expected {expected}, found {shown(found)}")


def _kind(expected: Any) -> str:
    words = {bool: "true or false", int: "a count", float: "a finite number", str: "text"}
    return words.get(type(expected), "None")


def _in_range(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or 0 <= value <= _MOST


def _tensor(value: Any) -> str | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return f"a tensor {list(value.shape)} of {value.dtype}".replace("torch.", "")


def _join(path: str, name: Any) -> str:
    text = str(name)
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{path}.{short}" if path else short
