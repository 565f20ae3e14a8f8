"""Judge an engine: do its pictures show their classes, and are they copies?

    python examples/evaluate.py build/demo/digits.engine --data digits [--per-class 20] [--seed 0]

Draws 20 images a class with default sampling, has them recognised by a classifier fitted on real
training pictures only, looks each one's ids up among the training images', and counts those that
are nearly a training image. Also writes the images as a grid beside the engine. The last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import m2kit
from m2kit.runtime.saving import write_grid
from m2kit.training.datasets.table import dataset_named
from m2kit.training.evaluation.report import evaluate


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description="Judge an engine.")
    parser.add_argument("engine", type=Path)
    parser.add_argument("--data", default="digits", help="what its model was trained on")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = dataset_named(options.data)
    with m2kit.open_engine(options.engine) as engine:
        report, images = evaluate(engine, data, per_class=options.per_class, seed=options.seed)
    grid = options.engine.parent / f"{options.engine.stem}.evaluated.png"
    write_grid(grid, images, columns=options.per_class)
    print(f"{report.images} generated images, drawn in {grid}")
    print(f"recognised as their class            {report.recognised:.1%}")
    print(f"real held-out images recognised      {report.real_recognised:.1%}")
    print(f"nearly a training image              {report.near_copies:.1%}")
    print(f"real held-out images that are so     {report.real_near_copies:.1%}")
    print(f"of the very ids of a training image  {report.copies:.1%}")
    print(f"codebook used by training images     {report.codebook_usage:.1%}")
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
