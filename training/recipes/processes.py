"""What the processes of a run tell one another beside gradients. All of them must ask alike."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor


def over_processes(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum of a value over all processes of a run."""
    if fabric.world_size == 1:
        return value
    summed = fabric.all_reduce(value.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """The values that all processes of a run have, which pickle takes."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
