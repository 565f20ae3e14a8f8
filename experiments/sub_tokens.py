"""Next-sub-token prediction, one joint head and independent heads, over several splits.

    python experiments/sub_tokens.py --data emoji64.npz

AR models of one backbone on the tokens of one tokenizer of 2^12 codes. A token of 12 bits is
predicted as M sub-tokens: M = 1 is one head of 4,096 ids; with M > 1 each sub-token sees those
before it (next-sub-token prediction), or none of them (independent heads). Bits per token are the
sum over sub-tokens, so that splits can be compared: held-out pictures, by the step at which they
were lowest. The cost of a position is what its decoding reads of the weights, a batch of one, and
the least processor time of five drawings of 8 pictures in PyTorch, divided by the positions.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from harness import AR, COARSE, Bench, Measure, Row, points, run_experiment
from independent_heads import IndependentHeads, independent_heads, weights_per_position
from matplotlib.figure import Figure

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.runtime.drawing import draw_images
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import TorchModel
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend

BITS = Measure("held_out_bits", "bits per token")
_SPLITS = ((12,), (6, 6), (4, 8), (4, 4, 4), (3, 3, 3, 3))
_INDEPENDENT = ((6, 6),)
BY = ("M", "bits", "heads")
MEASURES = (
    BITS,
    Measure("training_bits", "of training pictures"),
    Measure("weights", "1,000 weights", ",.0f"),
    Measure("position_ms", "CPU ms", ".2f"),
)


def rows_of(bench: Bench) -> list[Row]:
    """A row for each run."""
    tokenizer = bench.tokenizer(0, **COARSE)
    cost = {}
    rows: list[Row] = []
    ways = [(bits, False) for bits in bench.some(_SPLITS)]
    ways += [(bits, True) for bits in bench.some(_INDEPENDENT)]
    for seed in bench.seeds:
        for bits, independent in ways:
            with independent_heads() if independent else nullcontext():
                variant = "ar-independent" if independent else "ar"
                run = bench.ar(seed, tokenizer, variant, bits=bits)
            if (bits, independent) not in cost:
                cost[bits, independent] = cost_of_position(run.model, independent)
            weights, position_ms = cost[bits, independent]
            way = "independent" if independent else "joint" if len(bits) == 1 else "next"
            rows.append(
                {
                    "M": len(bits),
                    "bits": " + ".join(map(str, bits)),
                    "heads": way,
                    "seed": seed,
                    "held_out_bits": run.result["held_out_bits_per_token"],
                    "training_bits": run.result["training_bits_per_token"],
                    "step": run.result["chosen_step"],
                    "weights": weights / 1000,
                    "position_ms": position_ms,
                    "seconds": run.result["seconds"],
                }
            )
    return rows


def cost_of_position(checkpoint: Path, independent: bool) -> tuple[int, float]:
    """Weight values that a position of a picture reads, and milliseconds of the processor of
    a position of 8 pictures; a model of this architecture, with any weights."""
    spec = read_checkpoint(checkpoint).spec
    assert spec.transformer is not None
    network = (IndependentHeads if independent else Transformer)(spec.transformer).eval()
    weights = (weights_per_position if independent else _all_weights)(spec.transformer)
    model = TorchModel(spec, Tokenizer(spec.tokenizer).eval(), network)
    return weights, min(_drawing_ms(spec, model) for _ in range(5)) / spec.transformer.positions


def _all_weights(spec: TransformerSpec) -> int:
    return spec.weights_per_position


@torch.inference_mode()
def _drawing_ms(spec: ModelSpec, model: TorchModel) -> float:
    with Engine(spec, TorchBackend(model)) as engine:
        start = time.process_time()
        for _ in draw_images(engine, [0], 8, Sampling()):
            pass
        return 1000 * (time.process_time() - start)


def draw(figure: Figure, rows: list[Row]) -> None:
    """Bits per token, by split and kind of heads."""
    axes = figure.add_subplot()
    points(axes, rows, "bits", "heads", BITS)
    axes.set_xlabel(f"bits of each sub-token (width {AR['width']}, {AR['inter_layers']} layers)")


if __name__ == "__main__":
    run_experiment(__doc__, rows_of, by=BY, measures=MEASURES, draw=draw)
