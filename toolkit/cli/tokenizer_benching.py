"""bench of an engine that holds a tokenizer only: how fast it encodes and decodes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import m2kit
from m2kit.cli.options import warn_of_quality
from m2kit.cli.output import note, print_result, size_text, stages
from m2kit.errors import InputError
from m2kit.families.sizes import misfit
from m2kit.families.video import VideoTokenizerSpec
from m2kit.host import available_cores
from m2kit.records import JsonObject
from m2kit.runtime.reference import read_reference

if TYPE_CHECKING:
    from m2kit.runtime.bench.convolution import Open
    from m2kit.runtime.bench.figures import Coding, CodingBenchmark
    from m2kit.runtime.engine import Engine

Size = tuple[int, ...]
_MOST_PIXELS = 2**28  # of all pictures at once: 3 GB


def bench_tokenizer(
    path: Path,
    opening: JsonObject,
    *,
    size: Size | None,
    batch: int,
    rounds: int,
    baseline: bool,
    as_json: bool,
) -> None:
    """Open, measure and print.

    Args:
        path: The engine's folder.
        opening: How it is opened.
        size: Of a picture; None is the one the engine was compared at.
        batch: Pictures at once.
        rounds: How often they are encoded and decoded.
        baseline: Whether PyTorch is timed, too.
        as_json: Whether JSON is printed.
    """
    from m2kit.runtime.bench.circumstances import circumstances
    from m2kit.runtime.bench.coding import benchmark_coding

    with stages() as begin:
        began = time.perf_counter()
        with m2kit.open_engine(path, **opening) as engine:
            warn_of_quality(path, engine)
            size = _size(path, engine, size, batch)
            _open_graphs(engine)
            opened = time.perf_counter() - began
            found = benchmark_coding(
                engine,
                size,
                batch=batch,
                rounds=rounds,
                baselines=_baselines(engine, opening) if baseline else {},
                opened=_convolutions(engine),
                begin=begin,
            )
            stored = engine.info.built.weight_bytes if engine.info else None
            value = circumstances(path, engine) | {
                "open_seconds": round(opened, 2),
                **found.flat(),
                "weights_bytes": stored.total if stored else None,
            }
    if found.convolution and not found.steady:
        note(
            f"WARNING: the convolution reached {found.convolution.gmac_s_before} GMAC/s before and "
            f"{found.convolution.gmac_s_after} after, at attempt {found.attempts}: the machine is "
            "busy, and the shares mean little"
        )
    print_result(_rows(found, value), as_json, value)


def _size(path: Path, engine: Engine, chosen: Size | None, batch: int) -> Size:
    """Pixels of a picture: the chosen ones, the first ones that the engine was built for, or those
    at which it was compared, in clips of the model's own length."""
    tokenizer, built = engine.spec.tokenizer, engine.backend.image_sizes
    if chosen is not None:
        size = chosen
        if wrong := misfit(tokenizer, size):
            raise InputError(f"image size {','.join(map(str, size))}: {wrong}")
    elif built:
        size = built[0]
    else:
        size = read_reference(path, engine.spec).images.shape[2:]
        if isinstance(tokenizer, VideoTokenizerSpec):
            size = (tokenizer.frames, *size[1:])
    if batch * math.prod(size) > _MOST_PIXELS:
        raise InputError(
            f"{batch} at once of {_by(size)} pixels: expected {_MOST_PIXELS:,} pixels at most; "
            "take a smaller batch or smaller pictures"
        )
    return size


def _open_graphs(engine: Engine) -> None:
    """Open the graphs, which a backend does when it first runs them, on a picture of two latent
    positions; not where sizes are fixed."""
    if engine.backend.image_sizes is None:
        axes = len(engine.spec.tokenizer.axes)
        small = engine.spec.size_of_grid((*[1] * (axes - 1), 2))
        engine.decode(engine.encode(np.zeros((1, 3, *small), np.float32)))


def _baselines(engine: Engine, opening: JsonObject) -> dict[str, Callable[[], Engine]]:
    """What makes eager PyTorch's, where torch is."""
    if find_spec("torch") is None:
        note("torch is not installed: no baseline")
        return {}
    cores = engine.backend.threads or opening["threads"] or available_cores()

    def eager() -> Engine:
        from m2kit.runtime.engine import Engine
        from m2kit.training.bench.eager import eager_tokenizer

        return Engine(engine.spec, eager_tokenizer(engine.spec, cores))

    return {"eager": eager}


def _convolutions(engine: Engine) -> Open | None:
    """What opens a convolution beside the engine, or None, and why."""
    from m2kit.runtime.ort.backend import OnnxRuntimeBackend

    backend = engine.backend
    if not isinstance(backend, OnnxRuntimeBackend) or backend.threads is None:
        note("no share of a convolution's speed: one is timed for ONNX Runtime on a CPU alone")
        return None
    if find_spec("onnx") is None:
        note("onnx is not installed: no share of a convolution's speed")
        return None
    from m2kit.engines.ort.convolution import open_convolution

    return partial(open_convolution, backend)


def _rows(found: CodingBenchmark, value: JsonObject) -> dict[str, str]:
    """The table."""
    rows = {name: str(value[name]) for name in ("engine", "precision", "machine")}
    rows["picture"] = f"{_by(found.picture_size)} pixels, {found.batch} at once"
    if best := found.convolution:
        rows["convolution"] = (
            f"{_by(best.kernel)}, {best.channels} channels at {_by(best.size)}: "
            f"{best.gmac_s} GMAC/s, the fastest of the model's levels"
        )
    rows["encode"], rows["decode"] = _coding(found.encode), _coding(found.decode)
    for name, other in found.baselines.items():
        rows[f"{name} PyTorch"] = (
            f"encode {other.encode_ms:,.1f} ms, {other.encode_speedup} times as long; "
            f"decode {other.decode_ms:,.1f} ms, {other.decode_speedup} times"
        )
    if peak := value["peak_memory_bytes"]:
        stored = value["weights_bytes"]
        rows["peak memory"] = size_text(peak) + (f", weights {size_text(stored)}" if stored else "")
    rows["opens in"] = f"{value['open_seconds']} s"
    return rows


def _coding(found: Coding) -> str:
    """Milliseconds of a picture with their spread, and how fast that is."""
    words = f"{found.median_ms:,.1f} ms ({found.least_ms:,.1f} to {found.most_ms:,.1f})"
    if found.macs:
        words += f", {found.macs / 1e9:,.1f} GMAC at {found.gmac_s} GMAC/s"
    if found.share_of_convolution:
        words += f", {found.share_of_convolution:.0%} of the convolution"
    return words


def _by(numbers: Size) -> str:
    return " x ".join(map(str, numbers))
