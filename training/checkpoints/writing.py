"""Writing checkpoint files in the official layouts, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from m2kit.outputs import new_file
from m2kit.records import JsonObject
from m2kit.training.checkpoints.notes import METADATA
from m2kit.training.checkpoints.reading import EMA, FIRST_STAGE, ema_name
from m2kit.training.models.model import TRANSFORMER

EMA_DECAY = 0.999  # of the official tokenizers


def write_tokenizer_checkpoint(
    path: Path,
    live: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    *,
    ema_decay: float,
    notes: JsonObject | None = None,
) -> None:
    """Write a tokenizer file in the official layout: live weights, and EMA with dots removed.

    Args:
        path: The file.
        live: Canonical name -> tensor.
        ema: The averaged weights, under the same names.
        ema_decay: How they were averaged; part of the layout.
        notes: What a trainer adds: spec, sampling defaults, notes on the training.

    Raises:
        FolderError: It cannot be written.
    """
    state = dict(live) | {ema_name(name): tensor for name, tensor in ema.items()}
    state[f"{EMA}decay"] = torch.tensor(ema_decay)
    state[f"{EMA}num_updates"] = torch.tensor(-1, dtype=torch.int32)
    _write(path, state, notes)


def write_ar_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], notes: JsonObject | None = None
) -> None:
    """Write an AR file in the official layout, with its tokenizer inside.

    Args:
        path: The file.
        tensors: Canonical name (encoder.*, decoder.*, transformer.*) -> tensor.
        notes: What a trainer adds: spec, sampling defaults, notes on the training.

    Raises:
        FolderError: It cannot be written.
    """
    transformer = [name for name in tensors if name.startswith(TRANSFORMER)]
    state = {name: tensors[name] for name in transformer}
    state |= {FIRST_STAGE + name: t for name, t in tensors.items() if name not in state}
    _write(path, state, notes)


def _write(path: Path, state: dict[str, Tensor], notes: JsonObject | None) -> None:
    plain = {name: _whole(tensor.detach()) for name, tensor in state.items()}
    save_whole({"state_dict": plain} | ({METADATA: notes} if notes else {}), path)


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a view of more, all of which torch.save would write."""
    own_bytes = tensor.numel() * tensor.element_size()
    return tensor.clone() if tensor.untyped_storage().nbytes() > own_bytes else tensor


class _KeepsError(io.RawIOBase):
    """A file that keeps the first OSError of writing: torch would turn it into an internal one."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        """Write, or after an error only pretend to."""
        try:
            if self.error is None:
                self._file.write(data)
        except OSError as error:
            self.error = error
        return len(data)


def save_whole(content: dict[str, Any], path: Path) -> None:
    """torch.save, whole or not at all, without a second copy in memory.

    Raises:
        FolderError: It cannot be written.
    """
    with new_file(path) as temporary, temporary.open("wb") as file:
        kept = _KeepsError(file)
        torch.save(content, cast("IO[bytes]", kept))  # of which it uses write() alone
        if kept.error is not None:
            raise kept.error
