"""The two entropies of Lookup-Free Quantization: each position should be sure of its code, and a
batch should use all of them (arXiv 2310.05737, section 3.1).

A latent z is softly assigned to code c of {-1, +1}^Z with probability softmax over c of 2 z.c / t.
That is a product over bits, each one with probability sigmoid(4 z_i / t), so nothing needs all 2^Z
codes of every position: the entropy of a position is a sum of Z binary entropies, and the mean
assignment over T positions is a matrix product of the assignments of two halves of the bits,
(T, 2^(Z/2)) each. Both are exact. `enumerated_entropies` is the definition, (T, 2^Z) and all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

TEMPERATURE = 0.01  # the published one
# Upstream adds this inside the logarithm of a mean probability. With 2^18 codes of 3.8e-6 each it
# is more than that: the batch term then cannot reach 18 bits, and pushes less towards them.
PUBLISHED_FLOOR = 1e-5


@dataclass(frozen=True, slots=True)
class Entropies:
    """Both in nats, scalars.

    Attributes:
        per_position: Mean over positions of the entropy of a position's assignment; to be small.
        of_mean: Entropy of the mean assignment; to be large.
    """

    per_position: Tensor
    of_mean: Tensor


def entropies(
    latent: Tensor,
    temperature: float = TEMPERATURE,
    *,
    floor: float = PUBLISHED_FLOOR,
    group_bits: int | None = None,
    over_processes: bool = False,
) -> Entropies:
    """The two entropies of a batch's latents.

    Args:
        latent: (B, Z, h, w), or (B, Z, t, h, w) of clips, any range.
        temperature: Of the soft assignment.
        floor: Added to a mean probability inside its logarithm.
        group_bits: None for the exact entropy of the mean, 2^Z numbers; else the sum over groups
            of so many bits, an upper bound of it in 2^group_bits numbers, for codes of too many
            bits.
        over_processes: Take the mean over the batches of all processes of a run (upstream: each
            one's own). Every one then returns the same `of_mean`, with gradients that are right
            if they are averaged over processes, as data-parallel training does.
    """
    flat = latent.movedim(1, -1).flatten(0, -2)  # (T, Z)
    scaled = 4 * flat / temperature
    one, zero = scaled.sigmoid(), (-scaled).sigmoid()
    # p log p + q log q, from logarithms that do not overflow
    position = -(one * functional.logsigmoid(scaled) + zero * functional.logsigmoid(-scaled))
    bits = flat.shape[1]
    groups = [
        _entropy(_mean_assignment(part, over_processes=over_processes), floor)
        for part in torch.split(one, group_bits or bits, dim=1)
    ]
    return Entropies(position.sum(1).mean(), torch.stack(groups).sum())


def enumerated_entropies(
    latent: Tensor, temperature: float = TEMPERATURE, *, floor: float = PUBLISHED_FLOOR
) -> Entropies:
    """The same by their definition, over all 2^Z codes of every position at once, as upstream."""
    flat = latent.movedim(1, -1).flatten(0, -2)
    numbers = torch.arange(2 ** flat.shape[1], device=flat.device)[:, None]
    codes = (numbers >> torch.arange(flat.shape[1], device=flat.device)) & 1
    log_probabilities = (2 * flat @ (2 * codes - 1).to(flat.dtype).T / temperature).log_softmax(1)
    probabilities = log_probabilities.exp()
    position = -(probabilities * log_probabilities).sum(1).mean()
    return Entropies(position, _entropy(probabilities.mean(0), floor))


def _mean_assignment(one: Tensor, *, over_processes: bool) -> Tensor:
    """Mean over T of the product distributions of (T, bits) probabilities: 2^bits numbers."""
    half = one.shape[1] // 2
    mean = _joint(one[:, :half]).T @ _joint(one[:, half:]) / len(one)
    if over_processes and distributed.is_available() and distributed.is_initialized():
        whole = mean.detach().clone()
        distributed.all_reduce(whole)
        mean = whole / distributed.get_world_size() + (mean - mean.detach())  # 0, with a gradient
    return mean.flatten()


def _joint(one: Tensor) -> Tensor:
    """The product distributions of (T, bits) probabilities: (T, 2^bits)."""
    joint = one.new_ones(len(one), 1)
    for p in one.T:
        joint = torch.cat([joint * (1 - p)[:, None], joint * p[:, None]], dim=1)
    return joint


def _entropy(probabilities: Tensor, floor: float) -> Tensor:
    """In nats, of a distribution; what has no probability adds nothing."""
    if floor:
        return -(probabilities * (probabilities + floor).log()).sum()
    entropy: Tensor = torch.special.entr(probabilities).sum()
    return entropy
