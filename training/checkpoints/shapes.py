"""What names and shapes of a checkpoint's tensors tell; the same for every part of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from m2kit.errors import CheckpointError

Fields = dict[str, Any]  # of a spec, by name: what its records take as keywords
Shapes = Mapping[str, tuple[int, ...]]  # canonical name (encoder.*, decoder.*, transformer.*)


def count_of(shapes: Shapes, prefix: str, most: int) -> int:
    """1 + the largest index that follows a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    indices = [int(match.group(1)) for name in shapes if (match := pattern.match(name))]
    if not indices:
        raise CheckpointError(f"not an Open-MAGVIT2 checkpoint: it has no tensors {prefix}.*")
    if max(indices) >= most:
        raise CheckpointError(f"the file names {prefix}.{max(indices)}, expected {most} at most")
    return max(indices) + 1


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, of that rank.

    Raises:
        CheckpointError: It is not.
    """
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"not a whole Open-MAGVIT2 checkpoint: the tensor {name} is missing")
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"the tensor {name} has shape {list(shape)}, expected rank {rank}")
    return shape
