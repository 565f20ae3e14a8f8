"""scikit-learn's digits: 1,797 real 8 x 8 images of ten classes, enlarged to 32 x 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

CLASSES = 10
SIZE = 32
HELD_OUT = 0.2
_SPLIT_SEED = 0  # the split is part of the data set: every run and report uses the same one


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images (n, 3, H, W) float32 in [-1, 1] and labels (n) int64."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[LabelledImages, LabelledImages]:
    """Training images and held-out images (20 %, stratified by class)."""
    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 8 - 1  # 0..16 -> [-1, 1]
    large = functional.interpolate(small, SIZE, mode="bicubic").clamp(-1, 1)
    images = large.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(data.target).long()
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=data.target, random_state=_SPLIT_SEED
    )
    return (
        LabelledImages(images[train], labels[train]),
        LabelledImages(images[held_out], labels[held_out]),
    )


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 8 degrees, scaled by up to 8 % and moved by up to 6 % of its
    side, at random; (n, 3, H, W) in [-1, 1], black (-1) where nothing was."""
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
    count, side = len(images), SIZE // 8
    blocks = images.reshape(count, 3, 8, side, 8, side)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float64).reshape(count, 64)
