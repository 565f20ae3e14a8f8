"""What tokenizers leave of held-out pictures: numbers, and a picture of 40 of them.

    python examples/emoji/reconstruct.py emoji64.npz reconstructed.png FILE.pt [FILE.pt ...]

Prints a line for the held-out pictures themselves and one for each file: PSNR (mean over pictures,
8 bits a colour), how strong edges are beside those of the pictures (mean of the gradient's
magnitude), and the share, mean over classes, that the judge of examples/evaluate.py takes for their
class. The picture has 40 held-out pictures in two bands; below each of them its reconstructions.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from m2kit.runtime.images import psnr
from m2kit.runtime.saving import write_grid
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.crops import images_of
from m2kit.training.datasets.judge import judge
from m2kit.training.datasets.table import dataset_named

SIZE, COLUMNS, BANDS = 64, 20, 2


def reconstructed(file: Path, images: torch.Tensor) -> np.ndarray:
    """(n, 3, 64, 64) float32 in [-1, 1], as the file's tokenizer has them."""
    tokenizer = model_from_checkpoint(read_checkpoint(file)).tokenizer
    with torch.no_grad():
        parts = [tokenizer.decoder(tokenizer.codes(part)) for part in images.split(64)]
    return torch.cat(parts).clamp(-1, 1).numpy()


def edges(images: np.ndarray) -> float:
    """Mean magnitude of the gradient."""
    across, down = np.gradient(images, axis=(3, 2))
    return float(np.hypot(across, down).mean())


def main(data: str, output: Path, files: list[Path]) -> None:
    """Print the table and write the picture."""
    collection = dataset_named(data).load()
    recognise = judge(*(part.numpy() for part in images_of(collection.train, SIZE)))
    held_out, labels = images_of(collection.held_out, SIZE)
    images, labels = held_out.numpy(), labels.numpy()
    columns = [images] + [reconstructed(file, held_out) for file in files]
    for name, found in zip(["the pictures", *map(str, files)], columns, strict=True):
        right = recognise(found) == labels
        share = np.mean([right[labels == label].mean() for label in np.unique(labels)])
        decibel = "" if found is images else f"  {psnr(images, found):.3f} dB"
        print(f"{name}{decibel}  edges {edges(found) / edges(images):.3f}  recognised {share:.1%}")
    chosen = np.linspace(0, len(images) - 1, COLUMNS * BANDS).astype(int).reshape(BANDS, COLUMNS)
    grid = [found[band] for band in chosen for found in columns]
    write_grid(output, np.concatenate(grid), columns=COLUMNS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
