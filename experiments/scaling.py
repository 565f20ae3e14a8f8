"""How held-out bits fall as the AR model grows.

    python experiments/scaling.py --data emoji64.npz

Three AR models on the tokens of one tokenizer of 2^12 codes, split 4 + 8, trained alike for as many
steps. Bits per token are of the step at which those of held-out pictures were lowest.
"""

from __future__ import annotations

from harness import COARSE, Bench, Measure, Row, groups, run_experiment, spread
from matplotlib.figure import Figure

from m2kit.training.checkpoints.reading import read_checkpoint

_SIZES = (  # width, heads, layers over positions, hidden width
    (64, 2, 2, 160),
    (128, 4, 4, 320),
    (256, 8, 6, 640),
)
_PARTS = {"held_out_bits": "held out", "training_bits": "training"}
BY = ("width", "layers")
MEASURES = (
    Measure("parameters_m", "parameters, M", ".2f"),
    Measure("held_out_bits", "bits per token"),
    Measure("training_bits", "of training pictures"),
    Measure("step", "chosen step", ".0f"),
)


def rows_of(bench: Bench) -> list[Row]:
    """A row for each run."""
    tokenizer = bench.tokenizer(0, **COARSE)
    rows: list[Row] = []
    for seed in bench.seeds:
        for width, heads, layers, hidden in bench.some(_SIZES):
            shape = {"width": width, "heads": heads, "inter_layers": layers, "ffn_width": hidden}
            run = bench.ar(seed, tokenizer, **shape)
            counts = read_checkpoint(run.model).spec.parameter_counts()
            parameters = counts["inter transformer"] + counts["intra transformer"]
            rows.append(
                {
                    "width": width,
                    "layers": f"{layers} + 1",
                    "seed": seed,
                    "parameters_m": parameters / 1e6,
                    "held_out_bits": run.result["held_out_bits_per_token"],
                    "training_bits": run.result["training_bits_per_token"],
                    "step": run.result["chosen_step"],
                    "seconds": run.result["seconds"],
                }
            )
    return rows


def draw(figure: Figure, rows: list[Row]) -> None:
    """Bits per token over parameters, held-out and training."""
    axes = figure.add_subplot()
    for key, label in _PARTS.items():
        found = groups(rows, ["parameters_m"])
        spreads = [spread([row[key] for row in members]) for members in found.values()]
        means, deviations = zip(*spreads, strict=True)
        sizes = [size for (size,) in found]
        axes.errorbar(sizes, means, deviations, fmt="o-", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:.2f}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("bits per token")
    axes.grid(alpha=0.3)
    axes.legend(title="pictures")


if __name__ == "__main__":
    run_experiment(__doc__, rows_of, by=BY, measures=MEASURES, draw=draw)
