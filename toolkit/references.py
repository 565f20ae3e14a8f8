"""Parts of a table's entry that need packages a device may not have: named, imported when used."""

from __future__ import annotations

import importlib
from typing import Any


def resolve(reference: Any) -> Any:
    """What "module:attribute" names, imported now; anything but text is the part itself."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
