"""Memory of this process: what was freed goes back to the system."""

from __future__ import annotations

import ctypes
import gc


def release_freed_memory() -> None:
    """Have the C library give freed memory back: glibc keeps gigabytes of freed weights otherwise.

    Does nothing where the C library has no malloc_trim.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
