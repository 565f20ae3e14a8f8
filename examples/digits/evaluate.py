"""Judge a digits engine: are its digits digits, and are they copies?

    python examples/digits/evaluate.py build/demo/digits.engine [--per-class 20] [--seed 0]

Draws 20 images a class with default sampling, has them recognised by a classifier fitted on real
digits only, and looks each one's ids up among the training images'. Also writes the images as a
grid beside the engine. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import m2kit
from m2kit.runtime.saving import write_grid
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.evaluation.report import evaluate


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description="Judge a digits engine.")
    parser.add_argument("engine", type=Path)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with m2kit.open_engine(options.engine) as engine:
        report, images = evaluate(engine, DIGITS, per_class=options.per_class, seed=options.seed)
    grid = options.engine.parent / "evaluated.png"
    write_grid(grid, images, columns=options.per_class)
    print(f"{report.images} generated images, drawn in {grid}")
    print(f"recognised as their class         {report.recognised:.1%}")
    print(f"real held-out digits recognised   {report.real_recognised:.1%}")
    print(f"exact copies of a training image  {report.copies:.1%}")
    print(f"codebook used by training images  {report.codebook_usage:.1%}")
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
