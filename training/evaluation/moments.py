"""Mean and covariance of features, added batch by batch and merged, and the Frechet distance.

The sums are those of torchmetrics' FrechetInceptionDistance: count, sum, and the sum of outer
products, in float64, so that shards of a set merge into what one pass gives. The distance between
two Gaussians (Dowson and Landau, 1982; FID, arXiv 1706.08500) is

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2),

whose last trace is the sum of the singular values of F1' F2 for any factors with F F' = S. Factors
come from eigenvalues of symmetric matrices and singular values are never negative, so nothing is
imaginary and a matrix without full rank is no special case, as it is for scipy's sqrtm of S1 S2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2kit.errors import InputError, Unavailable
from m2kit.npz_file import DamagedArchive, read_npz

_SLACK = 1e-3  # of a covariance's largest eigenvalue, for files of float32
Matrix = npt.NDArray[np.float64]
_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


class Gaussian(Protocol):
    """What a Frechet distance is taken of.

    Attributes:
        count: Samples behind it; None where that is not known.
        mean: (D) float64.
        covariance: (D, D) float64, unbiased.
    """

    @property
    def count(self) -> int | None:
        """Samples, if known."""

    @property
    def mean(self) -> Matrix:
        """(D) float64."""

    @property
    def covariance(self) -> Matrix:
        """(D, D) float64."""


@dataclass(frozen=True, slots=True)
class Published:
    """Statistics that somebody else took, of samples that are not here.

    Attributes:
        mean: (D) float64.
        covariance: (D, D) float64.
        count: None, as the files do not tell.
    """

    mean: Matrix
    covariance: Matrix
    count: int | None = None


class Moments:
    """Sums over samples of D features.

    Attributes:
        dimensions: D.
        count: Samples so far.
        sum: (D) float64.
        outer: (D, D) float64, the sum of every sample's product with itself.
    """

    def __init__(self, dimensions: int) -> None:
        """Of no samples yet."""
        self.dimensions = dimensions
        self.count = 0
        self.sum: Matrix = np.zeros(dimensions)
        self.outer: Matrix = np.zeros((dimensions, dimensions))

    def add(self, features: Tensor) -> None:
        """Add samples, (B, D) of any float type and on any device.

        Raises:
            InputError: Features of another shape, or that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise InputError(
                f"expected (B, {self.dimensions}) features, found {tuple(features.shape)}"
            )
        values: Matrix = features.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(values).all():
            raise InputError("features of some samples are not finite; look at their pictures")
        self.count += len(values)
        self.sum += values.sum(0)
        self.outer += values.T @ values

    def merge(self, other: Moments) -> None:
        """Add another part's samples.

        Raises:
            InputError: Of another number of dimensions.
        """
        if other.dimensions != self.dimensions:
            raise InputError(
                f"moments of {self.dimensions} features do not merge with those of "
                f"{other.dimensions}; take one feature network for all"
            )
        self.count += other.count
        self.sum += other.sum
        self.outer += other.outer

    @property
    def mean(self) -> Matrix:
        """(D) float64.

        Raises:
            Unavailable: There are no samples.
        """
        if not self.count:
            raise Unavailable("there are no samples")
        return self.sum / self.count

    @property
    def covariance(self) -> Matrix:
        """(D, D) float64, unbiased.

        Raises:
            Unavailable: There are fewer than two samples.
        """
        if self.count < 2:
            raise Unavailable(f"a covariance needs two samples or more, found {self.count}")
        mean = self.mean
        return (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def of_published_npz(path: Path) -> tuple[Published, Published | None]:
    """Statistics of the pooled and of the spatial features: mu, sigma, mu_s, sigma_s of ADM's
    reference files (VIRTUAL_imagenet256_labeled.npz and its like), of whose pictures, gigabytes,
    nothing is held. pytorch-fid's files and MAR's have the first two alone, and then the second is
    None.

    Raises:
        InputError: It cannot be read, or has no such statistics.
    """
    arrays = _arrays(path)
    if "mu" not in arrays or "sigma" not in arrays:
        raise InputError(f"{path}: expected statistics, the arrays mu and sigma; it has not both")
    pooled = _published(path, arrays["mu"], arrays["sigma"])
    if "mu_s" not in arrays or "sigma_s" not in arrays:
        return pooled, None
    return pooled, _published(path, arrays["mu_s"], arrays["sigma_s"])


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Between two sets of features, in the square of their unit; 0 of a set and itself, and
    symmetric, both to rounding.

    Args:
        a: Of one set.
        b: Of the other, of as many dimensions.

    Raises:
        InputError: Of different dimensions.
        Unavailable: A set has fewer samples than dimensions, so that its covariance is singular
            and the distance says more of the number of samples than of the set.
    """
    dimensions = len(a.mean)
    if len(b.mean) != dimensions:
        raise InputError(
            f"statistics of {dimensions} and of {len(b.mean)} features cannot be compared; take "
            "one feature network for both"
        )
    for part in (a, b):
        if part.count is not None:
            check_enough(part.count, dimensions)
    first, second = a.covariance, b.covariance
    spread = float(np.trace(first) + np.trace(second))
    common = np.linalg.svd(_factor(first).T @ _factor(second), compute_uv=False).sum()
    distance = float(np.square(a.mean - b.mean).sum()) + spread - 2 * float(common)
    if not np.isfinite(distance):
        raise Unavailable("the Frechet distance is not finite; look at the features")
    return max(distance, 0.0)


def check_enough(count: int, dimensions: int) -> None:
    """Refuse fewer samples than features for a Frechet distance.

    Raises:
        Unavailable: There are fewer.
    """
    if count < dimensions:
        raise Unavailable(
            f"a Frechet distance of {dimensions} features needs {dimensions} samples or more, "
            f"found {count}"
        )


def _factor(covariance: Matrix) -> Matrix:
    """(D, rank) F with F F' = the covariance; eigenvalues of rounding are left out, as their roots
    would be larger than they by orders of magnitude."""
    symmetric = torch.from_numpy((covariance + covariance.T) / 2)
    values, vectors = (part.numpy() for part in torch.linalg.eigh(symmetric))
    rounding = np.finfo(np.float64).eps * len(values) * max(float(values[-1]), 0.0)
    kept = values > rounding
    factor: Matrix = vectors[:, kept] * np.sqrt(values[kept])
    return factor


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file:
            return read_npz(file, _STATISTICS)
    except (DamagedArchive, OSError) as error:
        raise InputError(
            f"{path} is no intact .npz file of plain arrays; fetch it again"
        ) from error


def _published(path: Path, mean: Any, covariance: Any) -> Published:
    dimensions = mean.size
    if mean.shape != (dimensions,) or covariance.shape != (dimensions, dimensions):
        raise InputError(
            f"{path}: expected a mean (D) and a covariance (D, D), found {mean.shape} and "
            f"{covariance.shape}"
        )
    if not (_is_finite(mean) and _is_finite(covariance)):
        raise InputError(f"{path}: its statistics are no finite numbers; fetch the file again")
    found = Published(mean.astype(np.float64), covariance.astype(np.float64))
    shares = np.linalg.eigvalsh((found.covariance + found.covariance.T) / 2)
    slack = _SLACK * np.abs(shares).max(initial=0)
    if np.abs(found.covariance - found.covariance.T).max(initial=0) > slack or (
        shares.min(initial=0) < -slack
    ):
        raise InputError(
            f"{path}: expected a covariance, found a matrix that is not symmetric or has negative "
            "eigenvalues; fetch the file again"
        )
    return found


def _is_finite(values: Any) -> bool:
    return values.dtype.kind == "f" and bool(np.isfinite(values).all())
