"""What TensorRT measured or compiled for a GPU, kept in the user's cache folder between processes:
files that belong to one GPU, one version of TensorRT, and for compiled kernels one driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from m2kit.errors import FolderError
from m2kit.outputs import new_file
from m2kit.runtime.device import Device

TIMING, COMPILED = "timing", "compiled"  # folders of caches
_MOST_BYTES = 256 << 20  # of compiled kernels; a file that has grown larger is begun anew
_log = logging.getLogger(__name__)


def cache_file(kind: str, product: str, version: str, device: Device, *more: str) -> Path | None:
    """The file of a kind of cache for a GPU and a TensorRT version, and what `more` tells them
    apart; None if there is no place for it."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join([str(device), *more])).strip("-")
    try:
        folder = Path.home() / ".cache" / "m2kit" / kind
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only home, or none: it only takes longer
        return None
    return folder / f"{product}-{version}-{name}.cache" if os.access(folder, os.W_OK) else None


class CompiledKernels:
    """TensorRT-RTX's runtime cache: it compiles the kernels of an engine for the GPU at hand when a
    context is created, unless it finds them there. One for all plans, read from a file and written
    back; NVIDIA's names for it were checked, the rest was never run on a GPU.

    Attributes:
        state: Where the kernels come from, in words.
    """

    def __init__(self, path: Path | None) -> None:
        """Keep them in a file, or nowhere."""
        self._path, self._cache, self._kept = path, None, b""
        self.state = "compiled in this process"

    def context(self, engine: Any, strategy: Any) -> Any:
        """An execution context of an engine, whose kernels are looked up first."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read(self._cache)
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def _read(self, cache: Any) -> None:
        """Load the file, if TensorRT-RTX takes it; one that is damaged never gets that far."""
        if self._path is None or not self._path.exists():
            return
        with contextlib.suppress(OSError):
            if self._path.stat().st_size <= _MOST_BYTES:
                data = self._path.read_bytes()
                digest, kernels = data[:32], data[32:]
                if digest == hashlib.sha256(kernels).digest() and cache.deserialize(kernels):
                    self._kept, self.state = kernels, f"read from {self._path}"
                    return
        self.state = "compiled in this process, in place of a cache that could not be used"
        _log.warning(
            "%s is damaged, too large or of another driver: its kernels are compiled again, and it "
            "is replaced",
            self._path,
        )

    def save(self) -> None:
        """Write the file if there are kernels it lacks; where it cannot be written, the next
        process compiles again."""
        if self._path is None or self._cache is None:
            return
        kernels = bytes(self._cache.serialize())
        if kernels == self._kept:
            return
        with contextlib.suppress(FolderError), new_file(self._path) as temporary:
            temporary.write_bytes(hashlib.sha256(kernels).digest() + kernels)
        self._kept = kernels
