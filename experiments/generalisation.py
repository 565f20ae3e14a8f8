"""A tokenizer judged on pictures of other kinds than it was trained on.

    python experiments/generalisation.py --data emoji64.npz

Tokenizers of 2^12 codes and 16 x 16 tokens a picture, trained on emoji or on digits, rebuild
held-out emoji, held-out digits and photographs: those inside scikit-learn's and scikit-image's
wheels (experiments/photographs.py lists them), their short side made 128 pixels, in squares of
32 x 32. Beside them a floor: each picture of 32 x 32 in its mean colour.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from codebook_use import PSNR
from harness import TOKENIZER, Bench, Measure, Row, points, run_experiment
from matplotlib.figure import Figure
from photographs import photographs, tiles
from torch import Tensor

from m2kit.runtime.codebook import CodebookCount
from m2kit.runtime.images import psnr
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.crops import images_of
from m2kit.training.datasets.table import dataset_named
from m2kit.training.models.tokenizer import Tokenizer

_SIDE = TOKENIZER["size"]
_SHORT_SIDE = 4 * _SIDE
BY = ("trained on", "judged on")
MEASURES = (
    Measure("pictures", "pictures", ",.0f"),
    Measure("psnr_db", "PSNR, dB"),
    Measure("floor_db", "mean colour, dB"),
    Measure("used", "codes used, %", ".1f"),
)


@cache
def judged_on(data: str) -> dict[str, Tensor]:
    """Name -> pictures (n, 3, 32, 32) float32 in [-1, 1]."""
    found = [
        tile for picture in photographs(_SHORT_SIDE).values() for tile in tiles(picture, _SIDE)
    ]
    photos = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 127.5 - 1
    held_out = {
        name: images_of(dataset_named(where).load().held_out, _SIDE)[0]
        for name, where in (("emoji", data), ("digits", "digits"))
    }
    return {**held_out, "photographs": photos}


def rows_of(bench: Bench) -> list[Row]:
    """A row for each tokenizer and kind of pictures; the runs' time stands in the first one."""
    rows: list[Row] = []
    for seed in bench.seeds:
        for trained, data in (("emoji", bench.data), ("digits", "digits")):
            run = bench.tokenizer(seed, code_bits=12, data=data)
            tokenizer = model_from_checkpoint(read_checkpoint(run.tokenizer)).tokenizer
            for number, (name, images) in enumerate(judged_on(bench.data).items()):
                shared = {"trained on": trained, "judged on": name, "seed": seed}
                seconds = 0.0 if number else run.result["seconds"]
                rows.append({**shared, **measured(tokenizer, images), "seconds": seconds})
    return rows


@torch.no_grad()
def measured(tokenizer: Tokenizer, images: Tensor) -> Row:
    """PSNR, that of the pictures' mean colours, and the share of the codes in use."""
    count = CodebookCount(tokenizer.spec.vocabularies, tokenizer.spec.bit_order)
    rebuilt = []
    for batch in images.split(64):
        codes = tokenizer.codes(batch)
        count.add(tokenizer.tokens(codes, tokenizer.spec.vocabularies).numpy())
        rebuilt.append(tokenizer.decoder(codes).clamp(-1, 1))
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    return {
        "pictures": len(images),
        "psnr_db": psnr(images.numpy(), torch.cat(rebuilt).numpy()),
        "floor_db": psnr(images.numpy(), flat.numpy()),
        "used": 100 * count.report().usage,
    }


def draw(figure: Figure, rows: list[Row]) -> None:
    """PSNR by kind of pictures and of training."""
    axes = figure.add_subplot()
    floors = [{**row, "trained on": "mean colour", "psnr_db": row["floor_db"]} for row in rows]
    points(axes, [*rows, *floors], "judged on", "trained on", PSNR)
    axes.set_ylabel("PSNR, dB")


if __name__ == "__main__":
    run_experiment(__doc__, rows_of, by=BY, measures=MEASURES, draw=draw)
