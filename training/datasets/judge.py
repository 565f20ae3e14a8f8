"""A judge of any data set of pictures: a support vector classifier on where which colours and edges
are. It knows little, but it can be fitted in seconds and needs no weights of anybody's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2kit.training.datasets.dataset import Images, Labels, Recogniser

_CELLS = 8  # a side, in which colours and edges are averaged
_SHADES = 4  # of each of red, green and blue, in the histogram of colours
_DIRECTIONS = 9  # of edges, over half a turn
_AT_ONCE = 256


def judge(images: Images, labels: Labels) -> Recogniser:
    """A classifier fitted on training images, in which every class weighs the same.

    Args:
        images: (n, 3, H, W) float32 in [-1, 1]; at least 8 x 8 pixels.
        labels: (n) int64.
    """
    from sklearn.svm import SVC

    classifier = SVC(C=10.0, class_weight="balanced")
    classifier.fit(features(images), labels)

    def recognise(images: Images) -> Labels:
        found: Labels = classifier.predict(features(images))
        return found

    return recognise


def features(images: Images) -> npt.NDArray[np.float64]:
    """(n, 3, H, W) -> (n, 832): mean colours and directions of edges in 8 x 8 cells, and the
    histogram of 64 colours."""
    parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
    return np.concatenate([_features(part.astype(np.float64)) for part in parts])


def _features(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    count = len(images)
    shades = ((images + 1) / 2 * _SHADES).astype(np.int64).clip(0, _SHADES - 1)
    colours = (shades[:, 0] * _SHADES + shades[:, 1]) * _SHADES + shades[:, 2]
    histogram = np.stack([np.bincount(c.ravel(), minlength=_SHADES**3) for c in colours])
    histogram = histogram / colours[0].size
    across, down = np.gradient(images.mean(1), axis=(2, 1))
    strength = np.hypot(across, down)
    turn = np.arctan2(down, across) % np.pi / np.pi
    direction = (turn * _DIRECTIONS).astype(np.int64).clip(0, _DIRECTIONS - 1)
    edges = np.stack([_cells(strength * (direction == k)) for k in range(_DIRECTIONS)], 1)
    edges = edges / np.sqrt((edges**2).sum((1, 2, 3), keepdims=True) + 1e-3)
    parts = (_cells(images), 4 * np.sqrt(histogram), 2 * np.sqrt(edges))
    return np.concatenate([part.reshape(count, -1) for part in parts], 1)


def _cells(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(..., H, W) -> (..., 8, 8): means over cells, as even as the size lets them be."""
    for axis in (-2, -1):
        size = values.shape[axis]
        bounds = np.arange(_CELLS + 1) * size // _CELLS
        sums = np.add.reduceat(values, bounds[:-1], axis=axis)
        widths = np.diff(bounds)
        values = sums / (widths[:, None] if axis == -2 else widths)
    return values
