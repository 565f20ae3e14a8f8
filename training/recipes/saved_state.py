"""resume.ckpt and best.ckpt: written whole, and compared with the run before Lightning reads them.

Lightning and torch take what a file says on trust: a file of another run, or a forged one, would
fail somewhere in their depths, or train something else. So everything they restore is held against
the like of the module that is to be trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from m2kit.errors import CheckpointError, InputError
from m2kit.training.checkpoints.file import read_torch_file
from m2kit.training.checkpoints.writing import save_whole
from m2kit.training.recipes.averaged_module import AveragedModule, Net

_SHOWN = 80  # characters of a value or name that is shown
_CHOICE = {  # what Lightning's ModelCheckpoint keeps; None stands for a number or none
    "monitor": str,
    "best_model_score": None,
    "best_model_path": str,
    "current_score": None,
    "dirpath": str,
    "best_k_models": dict,
    "kth_best_model_path": str,
    "kth_value": None,
    "last_model_path": str,
}


class _Unlike(Exception):
    """A value that is not like the expected one; the message says where."""


@dataclass(frozen=True, slots=True)
class Best:
    """The model a run chose.

    Attributes:
        epoch: The epoch that left it, counted from 0.
        tensors: The module's state.
    """

    epoch: int
    tensors: dict[str, Tensor]


class WholeFiles(TorchCheckpointIO):
    """Saves a checkpoint whole or not at all: a full disk leaves the last epoch's file intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save beside `path`, then rename."""
        save_whole(checkpoint, Path(path))


def read_best(path: Path, module: AveragedModule[Net]) -> Best:
    """The content of a best.ckpt.

    Raises:
        InputError: It is missing or damaged, or of another module.
    """
    content = _read(path)
    expected = {"epoch": 0, "state_dict": module.state_dict()}
    try:
        _compare({name: _entry(content, name) for name in expected}, expected, "")
    except _Unlike as error:
        raise _of_no_such_run(path, error) from error
    return Best(content["epoch"], dict(content["state_dict"]))


def check_resume(path: Path, module: AveragedModule[Net]) -> None:
    """Refuse a resume.ckpt that does not fit a module.

    Raises:
        InputError: It is missing or damaged, or of another run.
    """
    content = _read(path)
    optimizer, schedule = module.optimizer()
    expected = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": module.state_dict(),
        "lr_schedulers": [schedule.state_dict()],
    }
    try:
        _compare({name: _entry(content, name) for name in expected}, expected, "")
        _compare_optimizer(_entry(content, "optimizer_states"), optimizer)
        _check_counts(_entry(content, "loops"), "loops")
        for name, kept in _mapping(_entry(content, "callbacks"), "callbacks").items():
            _check_choice(kept, f"callbacks.{name}")
    except _Unlike as error:
        raise _of_no_such_run(path, error) from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        content = read_torch_file(path, check=True)
    except (CheckpointError, OSError) as error:
        found = str(error).partition(";")[0]  # without its advice, which is on published files
        raise InputError(f"{found}; start again in another folder (-o)") from error
    if not isinstance(content, Mapping):
        raise _of_no_such_run(path, f"it holds a {type(content).__name__}")
    return content


def _of_no_such_run(path: Path, reason: object) -> InputError:
    return InputError(f"{path} is not of this run ({reason}); start again in another folder (-o)")


def _entry(content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise _Unlike(f"{name} is missing")
    return content[name]


def _mapping(value: Any, path: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Unlike(f"{path}: expected a dict, found {_shown(value)}")
    return value


def _compare(found: Any, expected: Any, path: str) -> None:
    """Same names, lengths, shapes and kinds all through; numbers may differ."""
    if isinstance(expected, Tensor):
        if _tensor_kind(found) != _tensor_kind(expected):
            raise _Unlike(f"{path}: expected {_tensor_kind(expected)}, found {_shown(found)}")
    elif isinstance(expected, Mapping):
        found = _mapping(found, path)
        if set(found) != set(expected):
            first = min(set(found) ^ set(expected), key=str)
            what = "is missing" if first in expected else "is not known"
            raise _Unlike(f"{path}.{first}"[:_SHOWN].lstrip(".") + f" {what}")
        for name, item in expected.items():
            _compare(found[name], item, f"{path}.{name}".lstrip("."))
    elif isinstance(expected, (list, tuple)):
        if not isinstance(found, type(expected)) or len(found) != len(expected):
            kind = type(expected).__name__
            raise _Unlike(f"{path}: expected a {kind} of {len(expected)}, found {_shown(found)}")
        for index, item in enumerate(expected):
            _compare(found[index], item, f"{path}[{index}]")
    elif not _alike(found, expected):
        raise _Unlike(f"{path}: expected a value like {expected!r}, found {_shown(found)}")


def _alike(found: Any, expected: Any) -> bool:
    if type(found) is not type(expected):
        return False
    if isinstance(found, float):
        return math.isfinite(found)
    return not isinstance(found, int) or found >= 0


def _tensor_kind(value: Any) -> str | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return f"a {value.dtype} tensor {list(value.shape)}".replace("torch.", "")


def _shown(value: Any) -> str:
    return (_tensor_kind(value) or f"{type(value).__name__} {value!r}")[:_SHOWN]


def _compare_optimizer(found: Any, optimizer: torch.optim.Optimizer) -> None:
    """Each parameter that has a state has the one its optimizer keeps."""
    path = "optimizer_states"
    if not isinstance(found, list) or len(found) != 1:
        raise _Unlike(f"{path}: expected a list of 1, found {_shown(found)}")
    state = _mapping(_mapping(found[0], path).get("state"), f"{path}.state")
    kept = {index: item for index, item in _states(optimizer).items() if index in state}
    _compare(found[0], {**optimizer.state_dict(), "state": kept}, path)


def _states(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What the optimizer would keep of each parameter: found by a step on one of its own."""
    probe = torch.zeros(2, requires_grad=True)
    probe.grad = torch.zeros(2)
    trial = type(optimizer)([probe], lr=0.0)  # type: ignore[call-arg]
    trial.step()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        index: {
            name: parameter if kept.shape == probe.shape else kept
            for name, kept in trial.state[probe].items()
        }
        for index, parameter in enumerate(parameters)
    }


def _check_counts(value: Any, path: str) -> None:
    """Lightning's own counters: dicts of whole numbers and flags, however deep."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_counts(item, f"{path}.{name}")
    elif not isinstance(value, int) or value < 0:
        raise _Unlike(f"{path}: expected a count, found {_shown(value)}"[: 3 * _SHOWN])


def _check_choice(kept: Any, path: str) -> None:
    for name, value in _mapping(kept, path).items():
        kind = _CHOICE.get(name)
        number = isinstance(value, Tensor) and value.numel() == 1
        if value is not None and not (number if kind is None else isinstance(value, kind)):
            raise _Unlike(f"{path[:_SHOWN]}.{name}: found {_shown(value)}")
