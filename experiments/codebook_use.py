"""How much of its codebook LFQ uses, with the entropy loss and without it.

    python experiments/codebook_use.py --data emoji64.npz

Tokenizers of 2^8, 2^10 and 2^12 codes and 16 x 16 tokens a picture, trained alike but for the
weight of the entropy loss, 0.1 or 0. Counted are the codes that occur in the training pictures,
each seen once, and their perplexity: as many equally likely codes would have the entropy of theirs.
Both are shares of all codes.
"""

from __future__ import annotations

from harness import Bench, Measure, Row, points, run_experiment
from matplotlib.figure import Figure

USED = Measure("used", "codes used, %", ".1f")
PERPLEXITY = Measure("perplexity", "perplexity, %", ".1f")
PSNR = Measure("psnr_db", "held-out PSNR, dB")
_WEIGHTS = {"with": 0.1, "without": 0.0}
BY = ("codes", "entropy loss")
MEASURES = (USED, PERPLEXITY, Measure("dead_bits", "dead bits", ".1f"), PSNR)


def rows_of(bench: Bench) -> list[Row]:
    """A row for each run."""
    rows: list[Row] = []
    for seed in bench.seeds:
        for bits in bench.some((8, 10, 12)):
            for entropy, weight in _WEIGHTS.items():
                result = bench.tokenizer(seed, code_bits=bits, entropy_weight=weight).result
                rows.append(
                    {
                        "codes": f"2^{bits}",
                        "entropy loss": entropy,
                        "seed": seed,
                        "used": 100 * result["codebook_usage"],
                        "perplexity": 100 * result["codebook_perplexity"] / 2**bits,
                        "dead_bits": len(result["dead_bits"]),
                        "psnr_db": result["held_out_psnr_db"],
                        "seconds": result["seconds"],
                    }
                )
    return rows


def draw(figure: Figure, rows: list[Row]) -> None:
    """Use, perplexity and PSNR."""
    for place, measure in enumerate((USED, PERPLEXITY, PSNR), start=1):
        axes = figure.add_subplot(1, 3, place)
        points(axes, rows, "codes", "entropy loss", measure)


if __name__ == "__main__":
    run_experiment(__doc__, rows_of, by=BY, measures=MEASURES, draw=draw)
