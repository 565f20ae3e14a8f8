"""Sets of real emoji in the form of drawn ones: what a perfect model would get.

    python examples/emoji/real_samples.py emoji64.npz real

Writes into the folder, for `m2kit evaluate generation --samples FILE`:

- held-out.npz: the 370 held-out pictures, to be measured against the training half
- balanced.npz: training pictures, 150 of each class as the drawn sets have them, some of them twice
  where a class has fewer; against the training half that it is of
- half.npz: every second emoji with all its tones, against the others in other-half.npz
"""

import sys
from pathlib import Path

import numpy as np

from m2kit.training.datasets.pictures import Pictures, split_by_group
from m2kit.training.datasets.table import dataset_named

PER_CLASS = 150


def save(path: Path, pictures: Pictures, chosen: np.ndarray) -> None:
    """In ADM's form: arr_0 uint8 (n, h, w, 3), arr_1 the classes."""
    images = np.stack([pictures.read(index) for index in chosen])
    np.savez(path, arr_0=images, arr_1=np.asarray(pictures.labels)[chosen])
    print(f"{path}: {len(images)} pictures")


def main(data: str, folder: Path) -> None:
    """Write the four files."""
    collection = dataset_named(data).load()
    train, held_out = collection.train, collection.held_out
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "held-out.npz", held_out, np.arange(len(held_out.labels)))

    random, labels = np.random.default_rng(0), np.asarray(train.labels)
    of_class = [random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    balanced = np.concatenate([np.resize(indices, PER_CLASS) for indices in of_class])
    save(folder / "balanced.npz", train, balanced)

    half, other = split_by_group(train, 0.5)
    save(folder / "half.npz", half, np.arange(len(half.labels)))
    np.savez(
        folder / "other-half.npz",
        images=np.stack([other.read(index) for index in range(len(other.labels))]),
        labels=other.labels,
        names=np.array(other.groups),
        categories=np.array(collection.classes),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
