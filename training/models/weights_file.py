"""Files of published weights that m2kit does not ship: where they are looked for, what is said
where one is missing, and how their tensors come into a network that m2kit knows. They are read as
data, with weights only (training/checkpoints/file.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from m2kit.errors import CheckpointError
from m2kit.training.checkpoints.file import read_file


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of published weights.

    Attributes:
        name: As its publisher calls it.
        source: What it is, and where from.
        option: Of the command line, to name it.
    """

    name: str
    source: str
    option: str


def weights_path(named: Path | None, wanted: WeightsFile) -> Path:
    """The file itself where it was named, or else where torch.hub keeps it."""
    return named or Path(torch.hub.get_dir()) / "checkpoints" / wanted.name


def missing_line(path: Path, wanted: WeightsFile) -> str:
    """What is said where the file is not there."""
    return f"{path} is missing: it is {wanted.source}"


def copy_weights(
    network: nn.Module, path: Path, wanted: WeightsFile, names: Mapping[str, str]
) -> None:
    """Take tensors from a file.

    Args:
        network: Whose parameters and buffers are overwritten.
        path: The file.
        wanted: What it should be.
        names: Own name -> the file's.

    Raises:
        CheckpointError: The file cannot be read, or holds other weights.
    """
    tensors = read_file(path, check=True).tensors
    expected: dict[str, Tensor] = network.state_dict()
    for name, theirs in names.items():
        found = tuple(tensors[theirs].shape) if theirs in tensors else None
        if found != tuple(expected[name].shape):
            raise CheckpointError(
                f"{path}: expected {wanted.source}, with {theirs} of shape "
                f"{list(expected[name].shape)}; found {'none' if found is None else list(found)}"
            )
        expected[name].copy_(tensors[theirs])
