"""Weights and pictures for LPIPS on VGG-16 that are the same wherever they are made: of numpy's
RandomState, whose numbers are frozen."""

from __future__ import annotations

import numpy as np
import torch

# VGG-16's convolutions as (index in torchvision's `features`, channels in, channels out).
_CONVOLUTIONS = (
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
    (14, 256, 256), (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512),
    (28, 512, 512),
)  # fmt: skip
SHAPE = (2, 3, 32, 48)


def random_lpips(seed):
    """float64: (features.* of VGG-16, lin*.model.1.weight, images, others)."""
    random = np.random.RandomState(seed)
    features = {}
    for index, inputs, outputs in _CONVOLUTIONS:
        kernel = random.standard_normal((outputs, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5
        features[f"features.{index}.weight"] = torch.from_numpy(kernel)
        bias = random.standard_normal(outputs) / 10
        features[f"features.{index}.bias"] = torch.from_numpy(bias)
    heads = {
        f"lin{k}.model.1.weight": torch.from_numpy(random.random_sample((1, width, 1, 1)))
        for k, width in enumerate((64, 128, 256, 512, 512))
    }
    images, others = (torch.from_numpy(random.random_sample(SHAPE) * 2 - 1) for _ in range(2))
    return features, heads, images, others
