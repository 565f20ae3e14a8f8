"""Bytes: of the weights a position needs, and of what drawing keeps in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from m2kit import contract
from m2kit.build import WeightBytes
from m2kit.host import resident_bytes
from m2kit.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class PositionWeights:
    """Stored bytes of weights that one position needs: of the inter step with its embedding rows,
    and of all K intra runs with one head each."""

    inter: int
    intra: int

    @classmethod
    def of(cls, stored: WeightBytes, sub_tokens: int) -> PositionWeights:
        """Of an engine's weights, for K sub-tokens."""
        rows = 2 * sub_tokens - 1  # K of them at once, then one for each later sub-token
        inter = stored.graphs[contract.INTER_STEP] + rows * stored.row
        return cls(inter, sub_tokens * stored.graphs[contract.INTRA_STEP] + stored.heads)

    @property
    def total(self) -> int:
        """Of a whole position."""
        return self.inter + self.intra


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What peak memory is compared with; None where one is not known.

    Attributes:
        cache_bytes: Of the steps' caches.
        weights_bytes: Stored bytes of the weights that drawing needs.
        decoder_bytes: What decoding one image took beyond them.
        expected_memory_bytes: Their sum.
    """

    cache_bytes: int
    weights_bytes: int | None
    decoder_bytes: int | None
    expected_memory_bytes: int | None


def cache_bytes(engine: Engine, rows: int) -> int:
    """Bytes of the keys and values of R rows, in the engine's compute type."""
    spec = engine.transformer
    slots = spec.inter_layers * spec.positions + spec.intra_layers * spec.sub_tokens
    compute = engine.info.precision.compute if engine.info else "float32"
    return 2 * slots * rows * spec.width * np.dtype(compute).itemsize


def memory_use(engine: Engine, rows: int) -> tuple[MemoryUse, float]:
    """What drawing with R rows takes, and the seconds that measuring the decoder took; of a freshly
    opened engine, whose decoder is opened by this."""
    spec, channels = engine.transformer, engine.spec.tokenizer.code_channels
    if engine.backend.image_sizes is None:  # a small image opens the decoder and needs next to none
        small = np.ones((1, channels, 2, *[1] * (len(spec.grid) - 1)), "f")
        engine.backend.run(contract.DECODER, {contract.CODES: small})
    before = resident_bytes()
    began = time.perf_counter()
    codes = np.ones((1, channels, *spec.grid), np.float32)
    engine.backend.run(contract.DECODER, {contract.CODES: codes})
    seconds = time.perf_counter() - began
    after = resident_bytes()
    decoder = after - before if after and before else None
    weights = total = None
    if engine.info and (stored := engine.info.built.weight_bytes):
        unused = (contract.ENCODER, engine.spec.tokenizer.quantizer)
        weights = stored.total - sum(stored.graphs.get(graph, 0) for graph in unused)
    caches = cache_bytes(engine, rows)
    if weights is not None and decoder is not None:
        total = weights + caches + decoder
    return MemoryUse(caches, weights, decoder, total), seconds
