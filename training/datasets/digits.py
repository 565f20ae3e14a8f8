"""scikit-learn's digits: 1,797 real 8 x 8 images of ten classes, enlarged to 32 x 32.

torch and scikit-learn are imported when images are read: the record itself is listed without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m2kit.training.datasets.dataset import DataSet, LabelledImages, Recogniser, Splits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SIZE = 32
_HELD_OUT = 0.2
_SPLIT_SEED = 0


def digits() -> Splits:
    """Training images and held-out images (20 %, stratified by class)."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch.nn import functional

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 8 - 1  # 0..16 -> [-1, 1]
    large = functional.interpolate(small, _SIZE, mode="bicubic").clamp(-1, 1)
    images = large.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(data.target).long()
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=_HELD_OUT, stratify=data.target, random_state=_SPLIT_SEED
    )
    return (
        LabelledImages(images[train], labels[train]),
        LabelledImages(images[held_out], labels[held_out]),
    )


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 8 degrees, scaled by up to 8 % and moved by up to 6 % of its
    side, at random; (n, 3, H, W) in [-1, 1], black (-1) where nothing was."""
    import torch
    from torch.nn import functional

    count = len(images)
    angle, scale, *shift = (torch.rand(4, count, generator=generator) * 2 - 1) * torch.tensor(
        [[0.14], [0.08], [0.12], [0.12]]
    )
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    rows = [torch.stack([cos, -sin, shift[0]], -1), torch.stack([sin, cos, shift[1]], -1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def features(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(n, 3, 32, 32) -> (n, 64): the 8 x 8 block means a classifier sees."""
    count, side = len(images), _SIZE // 8
    blocks = images.reshape(count, 3, 8, side, 8, side)
    means: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3, 5), dtype=np.float64)
    return means.reshape(count, 64)


def judge(train: LabelledImages) -> Recogniser:
    """A support vector classifier, fitted on real training digits only."""
    from sklearn.svm import SVC

    classifier = SVC(gamma="scale", C=10.0)
    classifier.fit(features(train.images.numpy()), train.labels.numpy())

    def recognise(images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = classifier.predict(features(images))
        return found

    return recognise


DIGITS = DataSet(
    name="digits",
    title="scikit-learn digits, 80 % of the images",
    classes=10,
    image_size=(_SIZE, _SIZE),
    loader=digits,
    vary=warped,
    judge=judge,
)
