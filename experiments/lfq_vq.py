"""LFQ against VQ with codebooks of the same sizes: their use, and what is rebuilt.

    python experiments/lfq_vq.py --data emoji64.npz

Tokenizers of 2^8, 2^10 and 2^12 codes and 16 x 16 tokens a picture, trained alike but for the
quantizer: LFQ with its entropy loss, or a learned codebook as VQGAN has it (experiments/vq.py),
with no remedy for codes that are never used. Use is counted in the training pictures, PSNR is of
held-out pictures.
"""

from __future__ import annotations

from codebook_use import PERPLEXITY, PSNR, USED
from harness import Bench, Row, points, run_experiment
from matplotlib.figure import Figure
from vq import vector_quantization

BY = ("codes", "quantizer")
MEASURES = (USED, PERPLEXITY, PSNR)


def rows_of(bench: Bench) -> list[Row]:
    """A row for each run."""
    rows: list[Row] = []
    for seed in bench.seeds:
        for bits in bench.some((8, 10, 12)):
            for quantizer in ("LFQ", "VQ"):
                if quantizer == "VQ":
                    with vector_quantization():
                        run = bench.tokenizer(seed, "vq", code_bits=bits, entropy_weight=0.0)
                else:
                    run = bench.tokenizer(seed, code_bits=bits)
                result = run.result
                rows.append(
                    {
                        "codes": f"2^{bits}",
                        "quantizer": quantizer,
                        "seed": seed,
                        "used": 100 * result["codebook_usage"],
                        "perplexity": 100 * result["codebook_perplexity"] / 2**bits,
                        "psnr_db": result["held_out_psnr_db"],
                        "seconds": result["seconds"],
                    }
                )
    return rows


def draw(figure: Figure, rows: list[Row]) -> None:
    """Use, perplexity and PSNR."""
    for place, measure in enumerate((USED, PERPLEXITY, PSNR), start=1):
        points(figure.add_subplot(1, 3, place), rows, "codes", "quantizer", measure)


if __name__ == "__main__":
    run_experiment(__doc__, rows_of, by=BY, measures=MEASURES, draw=draw)
