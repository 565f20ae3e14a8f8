"""Time a digits engine against the same model in PyTorch, in one run.

    python examples/digits/bench.py build/demo/digits.engine examples/digits/digits.pt

Both decode the same ids through the same loop, in turns, so the ratio holds on a noisy machine.
The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

import m2kit
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoint import model_from_checkpoint, read_checkpoint
from m2kit.training.torch_backend import TorchBackend

ROUNDS = 15
WARM_UP = 2
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
        rounds = range(WARM_UP + ROUNDS)
        pairs = np.array([(milliseconds(engine), milliseconds(in_torch)) for _ in rounds])[WARM_UP:]
        versions = engine.info.versions if engine.info else {}
    result = {
        "images": IMAGES,
        "rounds": ROUNDS,
        "precision": "float32",
        "device": f"cpu, {os.cpu_count()} cores, {platform.platform()}",
        "versions": versions,
        "ratio_median": round(float(np.median(pairs[:, 1] / pairs[:, 0])), 2),
    }
    for column, name in enumerate(("onnxruntime", "pytorch")):
        median, p95 = np.percentile(pairs[:, column], [50, 95]).round(1)
        result[f"{name}_ms"] = {"median": median, "p95": p95}
        print(f"{name:12} {median:7.1f} ms for {IMAGES} images (median), {p95:.1f} ms (p95)")
    print(f"ratio        {result['ratio_median']:7.2f}, pair by pair (median)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
