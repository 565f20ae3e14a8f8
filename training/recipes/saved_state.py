"""resume.ckpt and best.ckpt: written whole, and compared with the run before Lightning reads them.

Lightning and torch take what a file says on trust: a file of another run, or a forged one, would
fail somewhere in their depths, or train something else. So everything they restore is held against
the like of it in the run that is to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from m2kit.training.recipes.likeness import Unlike, require_equal, require_like, require_names

_SCORE = torch.zeros(())
_CHOICE = {  # what Lightning's ModelCheckpoint keeps of the files it saved
    "monitor": str,
    "best_model_score": _SCORE,
    "best_model_path": str,
    "current_score": _SCORE,
    "dirpath": str,
    "best_k_models": dict,
    "kth_best_model_path": str,
    "kth_value": _SCORE,
    "last_model_path": str,
}
_OF_A_CHOICE = ("monitor", "best_model_score", "current_score")  # None where nothing is chosen


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
    try:
        for name, expected in {"epoch": 0, "state_dict": module.state_dict()}.items():
            require_like(_entry(content, name), expected, name)
    except Unlike as error:
        raise not_of_this_run(path, error) from error
    return Best(content["epoch"], dict(content["state_dict"]))


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
    }
    try:
        for name, item in expected.items():
            require_like(_entry(content, name), item, name)
        _check_progress(content["epoch"], content["loops"]["fit_loop"]["epoch_progress"], trainer)
        _check_optimizer(_entry(content, "optimizer_states"), optimizer)
        callbacks = _entry(content, "callbacks")
        require_names(
            callbacks, {c.state_key: c for c in trainer.checkpoint_callbacks}, "callbacks"
        )
        for kept in callbacks.values():
            _check_choice(kept)
    except Unlike as error:
        raise not_of_this_run(path, error) from error


def not_of_this_run(path: Path, reason: object) -> InputError:
    """The error of a file that can be read and does not fit."""
    return InputError(f"{path} is not of this run ({reason}); start again in another folder (-o)")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        content = read_torch_file(path, check=True)
    except (CheckpointError, OSError) as error:
        found = str(error).partition(";")[0]  # without its advice, which is on published files
        raise InputError(f"{found}; start again in another folder (-o)") from error
    if not isinstance(content, Mapping):
        raise not_of_this_run(path, f"expected a dict, found a {type(content).__name__}")
    return content


def _entry(content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise Unlike(f"{name} is missing")
    return content[name]


def _check_progress(epoch: int, progress: dict[str, Any], trainer: lightning.Trainer) -> None:
    """A run is saved at the end of an epoch, before that counts as completed."""
    begun = epoch + 1
    if trainer.max_epochs is not None and begun > trainer.max_epochs:
        raise Unlike(f"epoch: expected {trainer.max_epochs - 1} at most, found {epoch}")
    counts = {"ready": begun, "completed": epoch, "started": begun, "processed": begun}
    for name in ("total", "current"):
        require_equal(progress[name], counts, f"loops.fit_loop.epoch_progress.{name}")


def _check_optimizer(found: Any, optimizer: torch.optim.Optimizer) -> None:
    """The same options but for the learning rate; each parameter's state of its own shape."""
    path = "optimizer_states"
    expected = optimizer.state_dict()
    require_like(found, [dict], path)
    require_names(found[0], expected, path)
    require_like(found[0]["param_groups"], expected["param_groups"], f"{path}.param_groups")
    for group, own in zip(found[0]["param_groups"], expected["param_groups"], strict=True):
        for name, option in own.items():
            if name != "lr":
                require_equal(group[name], option, f"{path}.param_groups.{name}")
    states = _states(optimizer)
    require_like(found[0]["state"], dict, f"{path}.state")
    for index, state in found[0]["state"].items():
        if index not in states:
            raise Unlike(f"{path}.state: expected {len(states)} parameters, found {index!r:.80}")
        require_like(state, states[index], f"{path}.state.{index}")


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


def _check_choice(kept: Any) -> None:
    path = "callbacks"
    require_names(kept, _CHOICE, path)
    for name, expected in _CHOICE.items():
        if kept[name] is not None or name not in _OF_A_CHOICE:
            require_like(kept[name], expected, f"{path}.{name}")
    for file, score in kept["best_k_models"].items():
        require_like(file, str, f"{path}.best_k_models")
        require_like(score, _SCORE, f"{path}.best_k_models")
    if kept["best_k_models"] and kept["kth_best_model_path"] not in kept["best_k_models"]:
        raise Unlike(f"{path}.kth_best_model_path: expected one of the best models' paths")
