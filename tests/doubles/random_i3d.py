"""I3D's weights, and clips, that are the same wherever they are made: of numpy's RandomState, whose
numbers are frozen."""

from __future__ import annotations

import numpy as np
import torch

from doubles.random_inception import random_inception


def with_random_weights(module, seed=0):
    """The module, that no longer trains, with weights under which features stay in range."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict(random_inception(seed, shapes), strict=False)
    return module.eval().requires_grad_(requires_grad=False)


def random_clip(frames):
    """(1, 3, T, 224, 224) float32 in [-1, 1]."""
    drawn = np.random.RandomState(frames).uniform(-1, 1, (1, 3, frames, 224, 224))
    return torch.from_numpy(drawn.astype(np.float32))
