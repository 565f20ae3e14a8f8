"""m2kit: an Open-MAGVIT2 checkpoint to images, on the machine at hand.

The public surface is `open_engine` and `Sampling` (loaded from m2kit.runtime on first use, so that
importing m2kit stays cheap) and the error classes of m2kit.errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m2kit.errors import M2KitError

if TYPE_CHECKING:
    from m2kit.runtime.opening import open_engine
    from m2kit.sampling import Sampling

__version__ = "0.1.0"
__all__ = ["M2KitError", "Sampling", "__version__", "open_engine"]


def __getattr__(name: str) -> Any:
    """Load a public runtime name the first time it is asked for."""
    if name == "open_engine":
        from m2kit.runtime.opening import open_engine

        return open_engine
    if name == "Sampling":
        from m2kit.sampling import Sampling

        return Sampling
    raise AttributeError(f"module 'm2kit' has no attribute {name!r}")
