"""scikit-learn's digits: 1,797 real 8 x 8 images of ten classes, enlarged to 32 x 32.

torch and scikit-learn are imported when images are read: the record itself is listed without them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2kit.errors import require
from m2kit.training.datasets.dataset import DataSet, Images, Labels, Recogniser
from m2kit.training.datasets.pictures import ArrayPictures, Collection, SomePictures

_SIZE = 32
_HELD_OUT = 0.2
_SPLIT_SEED = 0


def digits() -> Collection:
    """Training pictures and held-out pictures (20 %, stratified by class).

    Raises:
        BackendError: torch or scikit-learn is not installed.
    """
    for module in ("torch", "sklearn"):
        require(module, extra="train", what=f"the data set {DIGITS.name}")
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch.nn import functional

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16  # 0..16 -> 0..1
    large = functional.interpolate(small, _SIZE, mode="bicubic").clamp(0, 1)
    images = (large * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    groups = [str(index) for index in range(len(images))]
    pictures = ArrayPictures(images.numpy(), data.target.astype(np.int64), groups)
    train, held_out = train_test_split(
        np.arange(len(images)), test_size=_HELD_OUT, stratify=data.target, random_state=_SPLIT_SEED
    )
    return Collection(
        SomePictures(pictures, train),
        SomePictures(pictures, held_out),
        tuple(str(digit) for digit in range(10)),
        size=_SIZE,
    )


def features(images: Images) -> npt.NDArray[np.float64]:
    """(n, 3, 32, 32) -> (n, 64): the 8 x 8 block means a classifier sees."""
    count, side = len(images), _SIZE // 8
    blocks = images.reshape(count, 3, 8, side, 8, side)
    means: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3, 5), dtype=np.float64)
    return means.reshape(count, 64)


def judge(images: Images, labels: Labels) -> Recogniser:
    """A support vector classifier, fitted on real training digits only."""
    from sklearn.svm import SVC

    classifier = SVC(gamma="scale", C=10.0)
    classifier.fit(features(images), labels)

    def recognise(images: Images) -> Labels:
        found: Labels = classifier.predict(features(images))
        return found

    return recognise


DIGITS = DataSet(
    name="digits",
    title="scikit-learn digits, 80 % of the images",
    loader=digits,
    judge=judge,
)
