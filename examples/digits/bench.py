"""Time a digits engine against the same model in PyTorch, in one run.

    python examples/digits/bench.py build/demo/digits.engine examples/digits/digits.pt

Both decode the same ids through the same loop, in turns, so the ratio holds on a noisy machine.
The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

import m2kit
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoint import model_from_checkpoint, read_checkpoint
from m2kit.training.torch_backend import TorchBackend

ROUNDS = 7
IMAGES = 10


def milliseconds(engine: Engine) -> float:
    """One guided batch, tokens and pixels."""
    start = time.perf_counter()
    engine.decode(engine.sample(np.arange(IMAGES), m2kit.Sampling(seed=1)))
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time a digits engine against PyTorch.")
    parser.add_argument("engine", type=Path)
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    model = model_from_checkpoint(read_checkpoint(options.checkpoint))
    with m2kit.open_engine(options.engine) as engine:
        in_torch = Engine(model.spec, TorchBackend(model), defaults=engine.defaults)
        pairs = [(milliseconds(engine), milliseconds(in_torch)) for _ in range(ROUNDS + 1)][1:]
    result = {
        "images": IMAGES,
        "rounds": ROUNDS,
        "onnxruntime_ms_median": statistics.median(own for own, _ in pairs),
        "pytorch_ms_median": statistics.median(other for _, other in pairs),
        "ratio_median": statistics.median(other / own for own, other in pairs),
        "machine": platform.platform(),
        "m2kit": m2kit.__version__,
    }
    print(f"ONNX Runtime  {result['onnxruntime_ms_median']:.1f} ms for {IMAGES} images (median)")
    print(f"PyTorch       {result['pytorch_ms_median']:.1f} ms")
    print(f"ratio         {result['ratio_median']:.2f}, pair by pair (median)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
