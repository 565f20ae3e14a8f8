"""How a trained tokenizer treats a data set: its use of the codebook, and its reconstructions.

Pictures, and clips of films, are cut at their centre, each once, and computed where the tokenizer
is. Of a large set a hundred thousand stand for all: evenly spread, as the first ones would be of
the first classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from m2kit.runtime.codebook import CodebookCount, CodebookReport
from m2kit.runtime.images import psnr
from m2kit.training.datasets.clips import Clips
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.pictures import Pictures
from m2kit.training.models.tokenizer import Tokenizer, frames_of

_MOST_MEASURED = 100_000  # pictures or clips
_AT_ONCE = 64  # pictures or frames
Seen = Crops | Clips
Note = Callable[[Pictures, Tensor], None]  # of a batch: its pictures, and READ or an unread index


def _ignore(_pictures: Pictures, _replaced: Tensor) -> None:
    """What was not read is not asked for."""


def measured_of(count: int) -> npt.NDArray[np.int64]:
    """The indices of those of `count` pictures that stand for all."""
    chosen = min(count, _MOST_MEASURED)
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


@torch.no_grad()
def codebook_of_crops(tokenizer: Tokenizer, crops: Seen, note: Note = _ignore) -> CodebookReport:
    """How the tokens of pictures use the codebook."""
    vocabularies = tokenizer.spec.vocabularies
    count = CodebookCount(vocabularies, tokenizer.spec.bit_order)
    for images in _batches(crops, measured_of(len(crops.whole())), note):
        codes = tokenizer.codes(images.to(_device(tokenizer)))
        count.add(tokenizer.tokens(codes, vocabularies).cpu().numpy())
    return count.report()


def psnr_of_crops(tokenizer: Tokenizer, crops: Seen, note: Note = _ignore) -> float:
    """Of reconstructions, the mean over pictures, or over all frames of clips, in dB."""
    numbers = measured_of(len(crops.whole()))
    values = [
        psnr(frames_of(images).numpy(), frames_of(_reconstructed(tokenizer, images)).numpy())
        * len(images)
        for images in _batches(crops, numbers, note)
    ]
    return round(sum(values) / len(numbers), 3)


def pictures_above_reconstructions(
    tokenizer: Tokenizer, crops: Seen, *, rows: int, columns: int
) -> npt.NDArray[np.float32]:
    """The first pictures in at most so many rows, with a row of reconstructions below each; of
    clips, a row has the frames of one.

    Returns:
        (n, 3, H, W) float32 in [-1, 1], n a multiple of 2 * columns, which is the clips' number of
        frames: a row that pictures do not fill is left out, but for the first one, which repeats
        them.
    """
    held = len(crops.whole())
    in_row = columns if isinstance(crops, Crops) else 1
    count = max(1, min(rows, held // in_row)) * in_row
    shown = []
    for images in _batches(crops, np.arange(min(count, held)), at_once=in_row):
        images = images[torch.arange(in_row) % len(images)]
        shown += [frames_of(images), frames_of(_reconstructed(tokenizer, images))]
    return torch.cat(shown).numpy()


@torch.no_grad()
def _reconstructed(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    rebuilt: Tensor = tokenizer.decoder(tokenizer.codes(images.to(_device(tokenizer))))
    return rebuilt.clamp(-1, 1).cpu()


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device


def _batches(
    crops: Seen, numbers: npt.NDArray[np.int64], note: Note = _ignore, *, at_once: int | None = None
) -> Iterator[Tensor]:
    """The images of these numbers, (B, 3, H, W), or clips, (B, 3, T, H, W)."""
    whole = crops.whole()
    if at_once is None:
        at_once = _AT_ONCE if isinstance(whole, Crops) else max(1, _AT_ONCE // whole.frames)
    for start in range(0, len(numbers), at_once):
        items = [whole[int(number)] for number in numbers[start : start + at_once]]
        images, *_, replaced = default_collate(items)
        if isinstance(whole, Crops):  # clips are of films that were looked through
            note(whole.pictures, replaced)
        yield images
