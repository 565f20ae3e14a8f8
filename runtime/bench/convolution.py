"""How fast a convolution alone can be: what encoder and decoder, which are mostly convolutions,
are measured by. Bandwidth is none for them: each weight is used at every position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from m2kit.families.convolution import Convolution

Run = Callable[[], object]
Open = Callable[[Convolution, int], Run]  # of so many pictures at once
_SECONDS = 1.0  # for the runs of one convolution, of which there are two at least


@dataclass(frozen=True, slots=True)
class TimedConvolution:
    """A convolution that can be run, for so many pictures at once."""

    layer: Convolution
    pictures: int
    run: Run

    def gmac_s(self) -> float:
        """The best of a second of runs, in 1e9 multiply-adds a second."""
        best, ends, runs = float("inf"), time.perf_counter() + _SECONDS, 0
        while runs < 2 or time.perf_counter() < ends:
            began = time.perf_counter()
            self.run()
            best, runs = min(best, time.perf_counter() - began), runs + 1
        return self.pictures * self.layer.macs / best / 1e9


def fastest(layers: Iterable[Convolution], pictures: int, opened: Open) -> TimedConvolution:
    """The fastest of those of the layers that keep channels and size, as most of them do."""
    alike = {
        Convolution(layer.channels_in, layer.channels_out, layer.size)
        for layer in layers
        if layer.kernel > 1 and layer.channels_in == layer.channels_out and not layer.strides
    }
    by_size = sorted(alike, key=lambda layer: (layer.size, layer.channels_in))
    timed = (TimedConvolution(layer, pictures, opened(layer, pictures)) for layer in by_size)
    return max(((one.gmac_s(), one) for one in timed), key=lambda pair: pair[0])[1]
