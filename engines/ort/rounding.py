"""Integers for which a matmul's outputs change least over the inputs that its model gives it.

GPTQ (Frantar et al., arXiv:2210.17323): inputs are taken one after another, those of the largest
second moment first; what rounding an input's weights does to the outputs is made up for by the
weights of inputs that are still to come, as far as the second moments tell. Scales are chosen
before that, one for each block of inputs as they are stored, which is what MatMulNBits reads: so
the order of rounding is free.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_DAMPING = 0.1  # of the mean second moment; published is 0.01, which with so few rows is no better
# Of the scale at which a block's largest weight is just there: it may be worth clipping, for finer
# steps of all others.
_FACTORS = np.linspace(1.05, 0.6, 10, dtype=np.float32)
_TOGETHER = 128  # inputs, after which those still to come are made up for by one product
_SMALL = 64  # rows of a triangle that numpy inverts


def round_by_moments(
    weight: Float32, moments: Float32, bits: int, block_size: int
) -> tuple[Float32, Float32]:
    """Round a matmul's weight.

    Args:
        weight: (in, out) float32.
        moments: (in, in) float32, X^T X of inputs X (n, in).
        bits: 8 or 4.
        block_size: Inputs that share a scale.

    Returns:
        (in, out) float32 integers in -2^(bits-1)..2^(bits-1)-1, and scales (blocks, out) float32.
        No output is further off over X, by its squared error, than rounded to the nearest.
    """
    plain = block_scales(weight, bits, block_size)
    nearest = _rounded(weight, _each(plain, weight, block_size), bits)
    if not np.isfinite(moments).all():  # of inputs beyond 1e19
        return nearest, plain
    scales = _clipping_scales(weight, plain, np.diag(moments), bits, block_size)
    values = _compensated(weight, _each(scales, weight, block_size), moments, bits)
    found, known = (
        output_error(weight, integers * _each(used, weight, block_size), moments)
        for integers, used in ((values, scales), (nearest, plain))
    )
    better = found < known
    return np.where(better, values, nearest), np.where(better, scales, plain)


def block_scales(weight: Float32, bits: int, block_size: int) -> Float32:
    """Scales (blocks, out) float32 of a weight (in, out): of each block, the value of largest
    magnitude becomes -2^(bits-1) exactly."""
    starts = range(0, len(weight), block_size)
    scales: Float32 = np.empty((len(starts), weight.shape[1]), np.float32)
    for own, start in zip(scales, starts, strict=True):
        block = weight[start : start + block_size]
        own[:] = block[np.abs(block).argmax(axis=0), np.arange(block.shape[1])]
    scales /= np.float32(-(2 ** (bits - 1)))
    return scales


def output_error(weight: Float32, restored: Float32, moments: Float32) -> Float32:
    """Sum over inputs X of the squared error of each output (out), where `restored` (in, out)
    stands for the weight and moments (in, in) are X^T X."""
    off = restored - weight
    error: Float32 = np.einsum("io,io->o", off, moments @ off)
    return error


def _each(scales: Float32, weight: Float32, block_size: int) -> Float32:
    """Scales (blocks, out), repeated for each input: (in, out)."""
    return np.repeat(scales, block_size, axis=0)[: len(weight)]


def _rounded(weight: Float32, scales: Float32, bits: int) -> Float32:
    """The nearest integers of the range; scales are as many as weights, and 0 is for weights 0."""
    half = 2 ** (bits - 1)
    steps = np.divide(weight, scales, out=np.zeros_like(weight), where=scales != 0)
    return np.clip(np.floor(steps + np.float32(0.5)), -half, half - 1)


def _clipping_scales(
    weight: Float32, plain: Float32, importance: Float32, bits: int, block_size: int
) -> Float32:
    """Of multiples of the plain scales, those at which rounding to the nearest is least off, an
    input's error counted by its second moment."""
    best, found = np.full(plain.shape, np.inf, np.float32), plain
    starts = np.arange(0, len(weight), block_size)
    for factor in _FACTORS:
        scales = plain * factor
        each = _each(scales, weight, block_size)
        off = _rounded(weight, each, bits) * each - weight
        error = np.add.reduceat(off * off * importance[:, None], starts, axis=0)
        better = error < best
        best, found = np.where(better, error, best), np.where(better, scales, found)
    return found


def _compensated(weight: Float32, scales: Float32, moments: Float32, bits: int) -> Float32:
    """GPTQ's integers (in, out), at given scales (in, out)."""
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable")
    damped = moments[np.ix_(order, order)].astype(np.float64)
    mean = diagonal.mean(dtype=np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * mean if mean > 0 else 1.0
    factor = _inverse_factor(damped).astype(np.float32)
    left, scales = weight[order], scales[order]
    values = np.empty_like(left)
    for start in range(0, len(left), _TOGETHER):
        stop = min(start + _TOGETHER, len(left))
        errors = np.empty_like(left[start:stop])
        for i in range(start, stop):
            values[i] = _rounded(left[i], scales[i], bits)
            errors[i - start] = (left[i] - values[i] * scales[i]) / factor[i, i]
            left[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    stored = np.empty_like(values)
    stored[order] = values
    return stored


def _inverse_factor(matrix: Float64) -> Float64:
    """The upper triangle U with U^T U the inverse of a positive matrix."""
    lower = np.linalg.cholesky(matrix[::-1, ::-1]).astype(np.float64, copy=False)
    return _inverse_of_triangle(lower)[::-1, ::-1]


def _inverse_of_triangle(lower: Float64) -> Float64:
    """By halves, as numpy has no inverse of a triangle: a third of the work of its general one."""
    size = len(lower)
    if size <= _SMALL:
        return np.tril(np.linalg.inv(lower))
    first, second = slice(0, size // 2), slice(size // 2, size)
    inverse = np.zeros_like(lower)
    inverse[first, first] = _inverse_of_triangle(lower[first, first])
    inverse[second, second] = _inverse_of_triangle(lower[second, second])
    across = lower[second, first] @ inverse[first, first]
    inverse[second, first] = -inverse[second, second] @ across
    return inverse
