"""resume.ckpt and best.ckpt: written whole, and compared with the run before Lightning reads them.

Lightning and torch take what a file says on trust: a file of another run, or a forged one, would
fail somewhere in their depths, or train something else. So everything they restore is held against
the like of it in the run that is to go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from m2kit.errors import CheckpointError, InputError
from m2kit.training.checkpoints.file import read_torch_file
from m2kit.training.checkpoints.writing import save_whole
from m2kit.training.recipes.averaged_module import AveragedModule, Net

_SHOWN = 80  # characters of a value or a path that are shown
_MOST = 2**53  # of a count


class WholeFiles(TorchCheckpointIO):
    """Saves a checkpoint whole or not at all: a full disk leaves the last epoch's file intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save beside `path`, then rename."""
        save_whole(checkpoint, Path(path))


class Unlike(Exception):
    """A value that is not like the expected one; the message says where."""


def read_best(path: Path, module: AveragedModule[Net]) -> tuple[int, dict[str, Tensor]]:
    """The epoch that left a best.ckpt, counted from 0, and the module's state in it.

    Raises:
        InputError: It is missing or damaged, or of another module.
    """
    content = _read(path)
    try:
        _require_part(content, {"epoch": 0, "state_dict": module.state_dict()})
    except Unlike as error:
        raise not_of_this_run(path, error) from error
    return content["epoch"], dict(content["state_dict"])


def check_resume(path: Path, module: AveragedModule[Net], trainer: lightning.Trainer) -> None:
    """Refuse a resume.ckpt that does not fit a run.

    Args:
        path: The file.
        module: What the run trains.
        trainer: The trainer that is to go on, before it has begun.

    Raises:
        InputError: It is missing or damaged, or of another run.
    """
    content = _read(path)
    optimizer, schedule = module.optimizer()
    loops = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    expected = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": module.state_dict(),
        "loops": {name: getattr(trainer, name).state_dict() for name in loops},
        "lr_schedulers": [schedule.state_dict()],
        "optimizer_states": [dict],
        "callbacks": {saver.state_key: dict for saver in trainer.checkpoint_callbacks},
    }
    try:
        _require_part(content, expected)
        _check_progress(content["epoch"], content["loops"]["fit_loop"]["epoch_progress"], trainer)
        _check_optimizer(content["optimizer_states"][0], optimizer)
        for saver in trainer.checkpoint_callbacks:
            _check_choice(content["callbacks"][saver.state_key], saver.state_dict())
    except Unlike as error:
        raise not_of_this_run(path, error) from error


def not_of_this_run(path: Path, reason: object) -> InputError:
    """The error of a file that can be read and does not fit."""
    return InputError(
        f"{path} is not of this run ({reason}); start again in another folder", option="-o"
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        content = read_torch_file(path, check=True)
    except (CheckpointError, OSError) as error:
        found = str(error).partition(";")[0]  # without its advice, which is on published files
        raise InputError(f"{found}; start again in another folder", option="-o") from error
    if not isinstance(content, Mapping):
        raise not_of_this_run(path, f"expected a dict, found a {type(content).__name__}")
    return content


def _check_progress(epoch: int, progress: dict[str, Any], trainer: lightning.Trainer) -> None:
    """A run is saved at the end of an epoch, before that counts as completed."""
    begun = epoch + 1
    if trainer.max_epochs is not None and begun > trainer.max_epochs:
        raise Unlike(f"epoch: expected {trainer.max_epochs - 1} at most, found {epoch}")
    counts = {"ready": begun, "completed": epoch, "started": begun, "processed": begun}
    for name in ("total", "current"):
        _require_equal(progress[name], counts, f"loops.fit_loop.epoch_progress.{name}")


def _check_optimizer(found: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """The same options but for the learning rate; each parameter's state of its own shape."""
    path = "optimizer_states"
    expected = optimizer.state_dict()
    _require_like(found, expected | {"state": dict}, path)
    for group, own in zip(found["param_groups"], expected["param_groups"], strict=True):
        for name in [name for name in own if name != "lr"]:
            _require_equal(group[name], own[name], f"{path}.param_groups.{name}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = _kept_of_two_values(optimizer)
    for index, state in found["state"].items():
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            raise Unlike(
                f"{path}.state: expected {len(parameters)} parameters, found {index!r:.80}"
            )
        like = {n: parameters[index] if t.shape == (2,) else t for n, t in kept.items()}
        _require_like(state, like, f"{path}.state.{index}")


def _kept_of_two_values(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter of shape (2): found by a step on one."""
    probe = torch.zeros(2, requires_grad=True)
    probe.grad = torch.zeros(2)
    trial = type(optimizer)([probe], lr=0.0)  # type: ignore[call-arg]
    trial.step()
    return dict(trial.state[probe])


def _check_choice(found: dict[str, Any], own: dict[str, Any]) -> None:
    """What Lightning's ModelCheckpoint keeps of the files it saved, like its own at the start."""
    path, score = "callbacks", torch.zeros(())
    scores = ("best_model_score", "current_score") if own["monitor"] else ()
    _require_like(found, own | dict.fromkeys(scores, score) | {"best_k_models": dict}, path)
    for file_and_score in found["best_k_models"].items():
        _require_like(file_and_score, (str, score), f"{path}.best_k_models")
    if found["best_k_models"] and found["kth_best_model_path"] not in found["best_k_models"]:
        raise Unlike(f"{path}.kth_best_model_path: expected one of the best models' paths")


def _require_part(content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the expected entries of a file, which may have others."""
    _require_like({name: content[name] for name in expected if name in content}, expected)


def _require_like(found: Any, expected: Any, path: str = "") -> None:
    """Compare nested dicts, lists and tuples: names, lengths, shapes and kinds, not the numbers.

    A type stands for any value of that type; whole numbers are counts, which are not negative,
    and other numbers are finite.
    """
    if isinstance(expected, Mapping):
        _require(isinstance(found, Mapping), found, "a dict", path)
        for name in (*expected, *found):
            if name not in expected or name not in found:
                odd = "missing" if name in expected else "not known"
                raise Unlike(f"{_join(path, name)} is {odd}")
        for name, item in expected.items():
            _require_like(found[name], item, _join(path, name))
    elif isinstance(expected, (list, tuple)):
        kind = type(expected)
        alike = isinstance(found, kind) and len(found) == len(expected)
        _require(alike, found, f"a {kind.__name__} of {len(expected)}", path)
        for index, item in enumerate(expected):
            _require_like(found[index], item, f"{path}[{index}]")
    elif isinstance(expected, Tensor):
        _require(_tensor(found) == _tensor(expected), found, f"{_tensor(expected)}", path)
    elif isinstance(expected, type):
        _require(type(found) is expected, found, f"a {expected.__name__}", path)
    else:
        words = {bool: "true or false", int: "a count", float: "a finite number", str: "text"}
        alike = type(found) is type(expected) and _in_range(found)
        _require(alike, found, words.get(type(expected), "None"), path)


def _require_equal(found: Any, expected: Any, path: str) -> None:
    _require_like(found, expected, path)
    _require(found == expected, found, _shown(expected), path)


def _require(alike: bool, found: Any, expected: str, path: str) -> None:
    if not alike:
        raise Unlike(f"{path or 'the file'}: expected {expected}, found {_shown(found)}")


def _in_range(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or 0 <= value <= _MOST


def _tensor(value: Any) -> str | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return f"a tensor {list(value.shape)} of {value.dtype}".replace("torch.", "")


def _shown(value: Any) -> str:
    return (_tensor(value) or f"{type(value).__name__} {value!r}")[:_SHOWN]


def _join(path: str, name: Any) -> str:
    text = str(name)
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{path}.{short}" if path else short
