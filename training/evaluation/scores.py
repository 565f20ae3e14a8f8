"""Scores of pictures against pictures, and of sets of features against sets.

Each says in its docstring whose numbers it gives. Of torchmetrics come PSNR and the kernel of KID;
its SSIM and subsets of KID are not used, as docs/decisions.md says. A score that
what is there does not allow raises Unavailable with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from m2kit.errors import InputError, Unavailable, require
from m2kit.training.models.perceptual import (
    PerceptualNetwork,
    missing_files,
    perceptual_network,
)

Pixels = npt.NDArray[np.uint8]
MOST_ROWS = 10_000  # of precision and recall: distances are between every two
_LEVELS = 255.0
_LEAST_ERROR = 1e-10  # squared grey levels; PSNR of equal pictures is 148.13 dB
_WINDOW = 7  # pixels, of SSIM
_LEAST_SIDE = 16  # pixels, of LPIPS
_SAME = 1e-12  # squared distance over squared norms, below which two rows are one
_ROWS_AT_ONCE = 1024


def psnr(images: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair in dB, (B), as scikit-image and torchmetrics give it;
    equal pictures have 148.13, not infinity, so that means exist.

    Args:
        images: (B, H, W, 3) uint8.
        others: The same.

    Raises:
        InputError: Other shapes or types.
        BackendError: torchmetrics is not installed, or cannot be imported.
    """
    a, b = _pair(images, others)
    theirs = require("torchmetrics.functional.image", extra="evaluate", what="PSNR")
    values = theirs.peak_signal_noise_ratio(a, b, _LEVELS, reduction="none", dim=(1, 2, 3))
    most = 10 * np.log10(_LEVELS**2 / _LEAST_ERROR)
    found: npt.NDArray[np.float64] = np.atleast_1d(values.clamp_max(most).numpy())
    return found


def ssim(images: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
    """Structural similarity of each pair, (B) in [-1, 1], as scikit-image's default gives it: a
    uniform window of 7 x 7 pixels that lies inside, sample covariance, K1 = 0.01, K2 = 0.03, the
    mean over pixels and over channels.

    Args:
        images: (B, H, W, 3) uint8.
        others: The same.

    Raises:
        InputError: Other shapes or types.
        Unavailable: A side is below 7 pixels.
    """
    a, b = _pair(images, others)
    if min(a.shape[2:]) < _WINDOW:
        raise Unavailable(f"SSIM needs pictures of {_WINDOW} x {_WINDOW} pixels or more")

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, _WINDOW, 1)

    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    variance_a = (mean(a * a) - mean_a**2) * unbiased
    variance_b = (mean(b * b) - mean_b**2) * unbiased
    covariance = (mean(a * b) - mean_a * mean_b) * unbiased
    c1, c2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    found: npt.NDArray[np.float64] = (above / below).mean((1, 2, 3)).numpy()
    return found


def lpips_network(vgg: Path | None = None, heads: Path | None = None) -> PerceptualNetwork:
    """The network of LPIPS on VGG-16.

    Args:
        vgg: torchvision's VGG-16; None looks where torch.hub keeps it.
        heads: The linear heads of the lpips package; None looks in the same folder.

    Raises:
        Unavailable: A file is missing.
        CheckpointError: A file holds other weights.
    """
    missing = missing_files(vgg, heads)
    if missing:
        raise Unavailable(f"{'; '.join(missing)}; put it there, or name it")
    return perceptual_network(vgg, heads)


@torch.inference_mode()
def lpips(network: PerceptualNetwork, images: Tensor, others: Tensor) -> npt.NDArray[np.float64]:
    """LPIPS (version 0.1, VGG-16) of each pair, (B), as the lpips package gives it.

    Args:
        network: Of `lpips_network`.
        images: (B, 3, H, W) float32 in [-1, 1].
        others: The same.

    Raises:
        InputError: Other shapes or values.
        Unavailable: A side is below 16 pixels, or a distance is not finite.
    """
    if images.shape != others.shape or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"expected two (B, 3, H, W), found {tuple(images.shape)} and {tuple(others.shape)}"
        )
    if min(images.shape[2:]) < _LEAST_SIDE:
        raise Unavailable(f"LPIPS needs pictures of {_LEAST_SIDE} x {_LEAST_SIDE} pixels or more")
    for part in (images, others):
        if not (part.isfinite().all() and part.abs().max() <= 1 + 1e-4):
            raise InputError("expected pictures in [-1, 1] for LPIPS")
    distances = network(images, others).to(torch.float64).numpy()
    if not np.isfinite(distances).all():
        raise Unavailable("a distance of LPIPS is not finite; look at its weights")
    return np.asarray(distances)


def kid(
    features: Tensor, others: Tensor, *, seed: int, subsets: int = 100, most: int = 1000
) -> float:
    """Kernel Inception distance (arXiv 1801.01401): the unbiased squared maximum mean discrepancy
    under (x y / D + 1)^3, the mean over random subsets. torchmetrics and torch-fidelity draw other
    subsets; of the same one they give the same number. Values a little below 0 are right.

    Args:
        features: (n, D) pooled features.
        others: (m, D), of the other set.
        seed: Of the subsets.
        subsets: How many are drawn, each without putting back.
        most: Samples in a subset; all of a set where one has fewer.

    Raises:
        InputError: Other shapes.
        Unavailable: A set has fewer than two samples.
        BackendError: torchmetrics is not installed, or cannot be imported.
    """
    a, b = _sets(features, others)
    size = min(most, len(a), len(b))
    if size < 2:
        raise Unavailable(f"KID needs two samples or more of each set, found {len(a)} and {len(b)}")
    theirs = require("torchmetrics.image.kid", extra="evaluate", what="KID")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        one, other = (part[_choice(random, len(part), size)] for part in (a, b))
        values.append(float(theirs.poly_mmd(one, other)))
    return float(np.mean(values))


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Shares in 0..1.

    Attributes:
        precision: Of generated samples that are among the real ones.
        recall: Of real samples that are among the generated ones.
    """

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991), as the prdc package gives them: a sample is
    among others if it is nearer to one of these than that one's k-th neighbour of its own set.

    Args:
        real: (n, D) pooled features, 10,000 rows at most.
        generated: (m, D), the same.
        k: Of the neighbour.

    Raises:
        InputError: Other shapes, or more rows.
        Unavailable: A set has k samples or fewer.
    """
    a, b = _sets(real, generated)
    if max(len(a), len(b)) > MOST_ROWS:
        raise InputError(
            f"precision and recall take {MOST_ROWS:,} rows at most, found {len(a)} and {len(b)}"
        )
    if min(len(a), len(b)) <= k:
        raise Unavailable(
            f"precision and recall with k = {k} need {k + 1} samples or more of each set, found "
            f"{len(a)} and {len(b)}"
        )
    real_radii, generated_radii = _radii(a, k), _radii(b, k)
    precise = torch.zeros(len(b), dtype=torch.bool)
    recalled = torch.zeros(len(a), dtype=torch.bool)
    for start in range(0, len(a), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances = _squared_distances(a[rows], b)
        precise |= (distances < real_radii[rows, None]).any(0)
        recalled[rows] = (distances < generated_radii).any(1)
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def _pair(images: Pixels, others: Pixels) -> tuple[Tensor, Tensor]:
    """Both as (B, 3, H, W) float64 in grey levels."""
    right = images.ndim == 4 and images.shape[3] == 3 and images.shape == others.shape
    if not right or images.dtype != np.uint8 or others.dtype != np.uint8 or not images.size:
        raise InputError(
            f"expected two (B, H, W, 3) uint8, found {images.shape} {images.dtype} and "
            f"{others.shape} {others.dtype}"
        )
    a, b = (torch.from_numpy(part.transpose(0, 3, 1, 2).astype(float)) for part in (images, others))
    return a, b


def _sets(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 on the CPU."""
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise InputError(
            f"expected (n, D) and (m, D) features of one network, found {tuple(features.shape)} "
            f"and {tuple(others.shape)}"
        )
    a, b = (part.detach().to("cpu", torch.float64) for part in (features, others))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise InputError("features of some samples are not finite; look at their pictures")
    return a, b


def _choice(random: np.random.Generator, count: int, size: int) -> Tensor:
    return torch.from_numpy(random.permutation(count)[:size])


def _radii(rows: Tensor, k: int) -> Tensor:
    """(n), the squared distance of each row from its k-th neighbour; itself is the 0-th."""
    parts = [
        _squared_distances(rows[start : start + _ROWS_AT_ONCE], rows).kthvalue(k + 1, 1).values
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]
    return torch.cat(parts)


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """(n, m) by one product of matrices; what is below its rounding is 0, so that equal rows are
    at no distance."""
    squares, other_squares = rows.square().sum(1)[:, None], others.square().sum(1)
    both = squares + other_squares
    distances = both - 2 * rows @ others.T
    return torch.where(distances > _SAME * both, distances, 0)
