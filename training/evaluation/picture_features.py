"""What a feature network says of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from m2kit.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Features:
    """Of B pictures, on the CPU.

    Attributes:
        pooled: (B, D) float32, for FID, KID, precision and recall.
        spatial: (B, D2) float32, for sFID; None where the network has no such features.
        logits: (B, C) float32, for the Inception score; None where it has none. C is 1000 for
            ImageNet's classes, 1008 for the Inception network of FID.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


def checked(network: str, outputs: Mapping[str, Tensor]) -> Features:
    """Outputs of a network, by the names of Features.

    Raises:
        Unavailable: Some are not finite.
    """
    parts = {name: part.detach().to("cpu", torch.float32) for name, part in outputs.items()}
    for name, part in parts.items():
        if not part.isfinite().all():
            raise Unavailable(f"{name} features of {network} are not finite; look at its weights")
    return Features(**parts)
