"""Weights of FID's Inception network, and pictures, that are the same wherever they are made: of
numpy's RandomState, whose numbers are frozen."""

from __future__ import annotations

import numpy as np
import torch

SIZE = (40, 56)  # of the pictures


def random_inception(seed, shapes):
    """Random float32 weights under which features neither vanish nor grow.

    Args:
        seed: Of all numbers.
        shapes: Name -> shape of every tensor, in the order of a state_dict.
    """
    random = np.random.RandomState(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = random.standard_normal(shape)
        if name.endswith("bn.weight"):
            drawn = 1 + drawn / 10
        elif name.endswith("running_var"):
            drawn = np.exp(drawn / 10)
        elif len(shape) > 1:
            drawn *= (2 / np.prod(shape[1:])) ** 0.5
        else:
            drawn /= 10
        weights[name] = torch.from_numpy(drawn.astype(np.float32))
    return weights


def random_pictures(seed):
    """(2, 3, H, W) uint8: smooth ones, with some noise."""
    random = np.random.RandomState(seed)
    height, width = SIZE
    waves = np.add.outer(np.sin(np.arange(height) / 4), np.cos(np.arange(width) / 6))
    levels = 127 + 50 * waves + random.uniform(-40, 40, (2, 3, 1, 1))
    noisy = levels + 10 * random.standard_normal((2, 3, height, width))
    return torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8))
