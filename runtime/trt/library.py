"""TensorRT's Python packages, loaded by product name: tensorrt (10.3 to 11) and tensorrt-rtx. They
share an API; what differs between versions is told by attribute where it is used.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from m2kit.errors import BackendError, require


@dataclass(frozen=True, slots=True)
class Product:
    """A TensorRT that m2kit builds for and runs.

    Attributes:
        module: Import name.
        extra: The extra of m2kit that brings it.
        title: As NVIDIA writes it.
        oldest: The first version with everything that is used: strong typing, memory managed by
            the caller, int64 tensors.
    """

    module: str
    extra: str
    title: str
    oldest: tuple[int, int]


_SHOWN = 300  # characters of an error of TensorRT
TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
PRODUCTS = {
    TENSORRT: Product("tensorrt", "tensorrt", "TensorRT", (10, 3)),
    TENSORRT_RTX: Product("tensorrt_rtx", "rtx", "TensorRT-RTX", (1, 4)),
}


def load_tensorrt(name: str) -> ModuleType:
    """The Python module of a product.

    Raises:
        BackendError: Not installed, its libraries cannot be loaded, or too old.
    """
    product = PRODUCTS[name]
    try:
        trt = require(product.module, extra=product.extra, what=f"the {name} backend")
    except BackendError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise BackendError(  # the package is there and its libraries are not
            f"{error}; install {product.title} again, on a Jetson from JetPack"
        ) from error
    version = str(getattr(trt, "__version__", "0"))
    if version_of(version) < product.oldest:
        oldest = ".".join(map(str, product.oldest))
        raise BackendError(
            f"{product.title} {version} is too old: m2kit needs {oldest} or newer, whose networks "
            "are strongly typed; on a Jetson that is JetPack 6.1 or newer"
        )
    return trt


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor of a version such as "10.3.0.26"."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def out_of_memory(reason: str) -> bool:
    """Whether an error of TensorRT tells of memory."""
    text = reason.lower()
    return any(words in text for words in ("outofmemory", "out of memory", "insufficient memory"))


def out_of_workspace(reason: str) -> bool:
    """Whether an error of TensorRT's builder tells that no kernel of a layer could be tried: for
    layers that it knows, because none fits the memory it may use."""
    text = reason.lower()
    return "could not find any implementation" in text or "insufficient workspace" in text


@functools.cache
def error_log(trt: ModuleType) -> Any:
    """The TensorRT logger of this process, as TensorRT keeps the first it is given: it holds errors
    until they are asked for and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(" ".join(message.split()))

        def reason(self) -> str:
            """The last error since this was asked."""
            last = self._errors[-1][:_SHOWN] if self._errors else "it gives no reason"
            self._errors.clear()
            return last

    return Log()
