"""Benchmark a published size with random weights on this CPU, and print the table of
docs/performance.md.

    python examples/sizes/bench.py ar-b build/sizes

Engines in fp32, int8 and int4 of one bundle, then `m2kit bench` of each, guidance 4 for both
sub-tokens; int8 also with 8 images at once, between two runs with one. Bundle and engines are kept
in the folder and used again by the next run. Each run's JSON is written beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest

M2KIT = [sys.executable, "-m", "m2kit"]
RUNS = (  # name, precision, options
    ("int8", "int8", ()),
    ("fp32", "fp32", ()),
    ("int4", "int4", ()),
    ("int8, one image", "int8", ("--no-baseline",)),
    ("int8, 8 images", "int8", ("--no-baseline", "--batch", "8", "--rounds", "1")),
    ("int8, one image again", "int8", ("--no-baseline",)),
)
ROWS = (
    ("ms a position", lambda v: f"{v['position_ms']:.1f}"),
    ("limit, ms", lambda v: f"{v['position_limit_ms']:.1f}"),
    ("share of the limit", lambda v: f"{v['position_share_of_limit']:.0%}"),
    ("outside the backend", lambda v: f"{v['overhead_share']:.1%}"),
    ("decoder, ms", lambda v: f"{v['stages']['decode']['median_ms']:.0f}"),
    ("image, s", lambda v: f"{v['image_ms'] / 1e3:.1f}"),
    ("eager PyTorch / m2kit", lambda v: f"{v['image_speedup_vs_eager']:.1f}"),
    ("official habits / m2kit", lambda v: f"{v['image_speedup_vs_official']:.1f}"),
    ("peak memory", lambda v: f"{v['peak_memory_bytes'] / 1e9:.2f} GB"),
    (
        "peak / (weights + caches + activations)",
        lambda v: f"{v['peak_memory_bytes'] / v['expected_memory_bytes']:.2f}",
    ),
    ("opens in, s", lambda v: f"{v['open_seconds']:.1f}"),
)


def prepare(preset: str, folder: Path) -> None:
    """Make what is missing: checkpoint, bundle, engines."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = folder / f"{preset}.pt", folder / f"{preset}.bundle"
    if not bundle.exists() or not read_manifest(bundle, BUNDLE).fused:
        checkpoint.unlink(missing_ok=True)
        command = ["init-checkpoint", "--preset", preset, "-o", str(checkpoint)]
        subprocess.run([*M2KIT, *command], check=True)
        subprocess.run([*M2KIT, "export", "--ckpt", str(checkpoint), "-o", str(bundle)], check=True)
        checkpoint.unlink()
    for precision in ("fp32", "int8", "int4"):
        engine = folder / f"{preset}.{precision}.engine"
        if not _is_of(engine, bundle):  # random weights need not pass the gate to be timed
            command = ["build-engine", str(bundle), "-o", str(engine), "--backend", "onnxruntime"]
            command += ["--precision", precision]
            if precision != "fp32":
                command.append("--accept-quality")
            subprocess.run([*M2KIT, *command], check=True)


def _is_of(engine: Path, bundle: Path) -> bool:
    """Whether the engine is there, was built from that bundle and says what its weights take."""
    if not engine.exists():
        return False
    manifest = read_manifest(engine, ENGINE)
    source = read_manifest(bundle, BUNDLE)
    return manifest.built.weight_bytes is not None and manifest.source == source.source


def run(engine: Path, options: tuple[str, ...], result: Path) -> dict[str, Any]:
    """One `m2kit bench`."""
    command = [*M2KIT, "bench", "--engine", str(engine), "--guidance", "4,4", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result.write_text(done.stdout)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def main(preset: str, folder: Path) -> None:
    """Measure and print."""
    prepare(preset, folder)
    found = {
        name: run(
            folder / f"{preset}.{precision}.engine",
            options,
            folder / f"bench {preset} {name}.json".replace(",", "").replace(" ", "_"),
        )
        for name, precision, options in RUNS
    }
    names = ("fp32", "int8", "int4")
    any_run = found["int8"]
    versions = ", ".join(f"{n} {v}" for n, v in any_run["versions"].items())
    print(f"{preset}, {any_run['machine']}; {versions}")
    busy = [name for name in names if not found[name]["steady"]]
    if busy:
        print(f"bandwidth was not steady during {', '.join(busy)}: run it again on an idle machine")
    print("\n| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    bandwidths = (f"{found[name]['bandwidth_gb_s']:.1f}" for name in names)
    print("| bandwidth, GB/s | " + " | ".join(bandwidths) + " |")
    for label, text in ROWS:
        print(f"| {label} | " + " | ".join(text(found[name]) for name in names) + " |")
    single = [found["int8, one image"], found["int8, one image again"]]
    batch = found["int8, 8 images"]
    for key, what in (("images_per_second", "whole"), ("ar_images_per_second", "AR part")):
        one = sum(value[key] for value in single) / 2
        print(f"\n8 images at once, int8, {what}: {batch[key] / one:.2f} times the images a second")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
