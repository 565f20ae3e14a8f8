"""One convolution of a tokenizer: what it takes and gives, its parameters and its multiply-adds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution, and the size of what it gives.

    Attributes:
        channels_in: Of its input.
        channels_out: Of its output.
        size: Positions of its output along each axis, such as (t, h, w).
        kernel: Along each axis.
        strides: Along each axis; by default 1.
        bias: Whether it adds one.
        normed: Whether a GroupNorm with scale and shift stands before it.
    """

    channels_in: int
    channels_out: int
    size: tuple[int, ...]
    kernel: int = 3
    strides: tuple[int, ...] = ()
    bias: bool = False
    normed: bool = False

    @property
    def weights(self) -> int:
        """Of its kernels."""
        return self.channels_in * self.channels_out * math.prod(self.kernel for _ in self.size)

    @property
    def parameters(self) -> int:
        """Weights, bias, and those of the GroupNorm before it."""
        return self.weights + self.bias * self.channels_out + 2 * self.normed * self.channels_in

    @property
    def macs(self) -> int:
        """Multiply-adds of one picture, those with zeros around it among them."""
        return self.weights * math.prod(self.size)
