"""m2kit: an Open-MAGVIT2 checkpoint to images, on the machine at hand.

    with m2kit.open_engine("digits.engine") as engine:
        tokens = engine.sample([3, 1, 4], m2kit.Sampling(seed=1))  # (B, h, w, K) int64
        images = engine.decode(tokens)  # (B, 3, H, W) float32 in [-1, 1]
    m2kit.save_images("samples.png", images)

`open_engine` opens what `m2kit build-engine` made, as an `Engine`: it encodes, decodes, samples,
generates and scores any number of images. `Sampling` says how to draw; `save_images`, `to_uint8`
and `to_pil` take what `decode` returns. Every error that a user can cause and mend is an
`M2KitError`. What needs numpy is loaded when it is first used.
"""

from __future__ import annotations

import importlib

from m2kit.errors import (
    BackendError,
    CheckpointError,
    FolderError,
    InputError,
    M2KitError,
    ParityError,
    SpecError,
)

TYPE_CHECKING = False  # not from typing, which takes as long to load as all the rest
if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine
    from m2kit.runtime.interchange import save_images, to_pil, to_uint8
    from m2kit.runtime.opening import open_engine
    from m2kit.sampling import Sampling

__version__ = "0.1.0"
_LATE = {
    "Engine": "m2kit.runtime.engine",
    "Sampling": "m2kit.sampling",
    "open_engine": "m2kit.runtime.opening",
    "save_images": "m2kit.runtime.interchange",
    "to_pil": "m2kit.runtime.interchange",
    "to_uint8": "m2kit.runtime.interchange",
}
__all__ = [
    "BackendError",
    "CheckpointError",
    "Engine",
    "FolderError",
    "InputError",
    "M2KitError",
    "ParityError",
    "Sampling",
    "SpecError",
    "__version__",
    "open_engine",
    "save_images",
    "to_pil",
    "to_uint8",
]


def __getattr__(name: str) -> object:
    """Load a public name that needs numpy the first time it is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module 'm2kit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not: what help(m2kit) shows."""
    return __all__
