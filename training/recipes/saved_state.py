"""resume.ckpt and best.ckpt: written whole, and compared with the run before anything is taken.

torch takes what a file says on trust: a file of another run, or a forged one, would fail somewhere
in its depths, or train something else. So all that is restored is held against the like of it in
the run that is to go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from m2kit.errors import CheckpointError, InputError
from m2kit.training.checkpoints.file import read_torch_file
from m2kit.training.recipes.phase import Phase, Recipe
from m2kit.training.recipes.processes import gathered

_SHOWN = 80  # characters of a value or a path that are shown
_MOST = 2**53  # of a count
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Unlike(Exception):
    """A value that is not like the expected one; the message says where."""


def weights_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Phase -> its network and average, whole, whatever processes hold: {"network", "average"}.

    Every process must call it; where weights are sharded, only the first one gets them.
    """
    return {phase.name: _weights(phase) for phase in recipe.phases}


def _weights(phase: Phase[Any]) -> dict[str, Any]:
    return {
        "network": get_model_state_dict(phase.network, options=_WHOLE),
        "average": get_model_state_dict(phase.averaged, options=_WHOLE),
    }


def state_of(fabric: Fabric, recipe: Recipe) -> dict[str, Any]:
    """All that a recipe's phases and statistics hold, as `weights_of` does; of the statistics what
    each process has, once where all have the same."""
    own = {name: value.cpu() for name, value in recipe.statistics.state_dict().items()}
    every = gathered(fabric, own)
    alike = all(torch.equal(one[name], own[name]) for one in every for name in own)
    state: dict[str, Any] = {"statistics": every[:1] if alike else every}
    for phase in recipe.phases:
        state[phase.name] = {
            **_weights(phase),
            "optimizer": _optimizer_state(phase),
        }
    return state


def scaler_of(fabric: Fabric) -> dict[str, Any]:
    """How fp16 scales gradients by now; in another precision, how it would begin."""
    begins = torch.amp.GradScaler("cpu").state_dict()
    return fabric.strategy.precision.state_dict() or begins


def _optimizer_state(phase: Phase[Any]) -> dict[str, Any]:
    optimizer = _plain(phase)
    if not optimizer.state:  # torch makes it by a step of nothing, which must not count as one
        get_optimizer_state_dict(phase.network, optimizer, options=_WHOLE)
        for values in optimizer.state.values():
            for value in values.values():
                value.zero_()
    state: dict[str, Any] = get_optimizer_state_dict(phase.network, optimizer, options=_WHOLE)
    return state


def restore(fabric: Fabric, recipe: Recipe, state: Mapping[str, Any], step: int) -> None:
    """Take what `state_of` gave after so many steps; the first process has it, the others get their
    part of it. Where there were more or fewer processes, each takes the mean of the statistics."""
    loaded = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=distributed.is_initialized()
    )
    statistics = fabric.broadcast(state.get("statistics", []))
    if len(statistics) == fabric.world_size:
        statistics = [statistics[fabric.global_rank]]
    means = {name: torch.stack([one[name] for one in statistics]).mean(0) for name in statistics[0]}
    recipe.statistics.load_state_dict(means)
    for phase in recipe.phases:
        found = state.get(phase.name, {"network": {}, "average": {}, "optimizer": {}})
        set_model_state_dict(phase.network, found["network"], options=loaded)
        set_model_state_dict(phase.averaged, found["average"], options=loaded)
        groups = _plain(phase).param_groups
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        optimizer = dict(found["optimizer"])
        if optimizer:
            optimizer["state"] = {
                name: {key: value.clone() for key, value in values.items()}  # no views of another
                for name, values in optimizer["state"].items()
            }
        set_optimizer_state_dict(phase.network, _plain(phase), optimizer, options=loaded)
        for group, option in zip(_plain(phase).param_groups, options, strict=True):
            group.update(option)  # torch has made lists of tuples
        phase.ema.n_averaged.fill_(step > phase.begins)  # its first step copies the network


def _plain(phase: Phase[Any]) -> torch.optim.Optimizer:
    plain: torch.optim.Optimizer = phase.optimizer.optimizer
    return plain


def read_best(path: Path, expected: Mapping[str, Any]) -> Mapping[str, Any]:
    """A best.ckpt, which must be like what the run would write itself.

    Raises:
        InputError: It is missing or damaged, or of another run.
    """
    content = _read(path)
    try:
        _require_like(content, expected)
    except Unlike as error:
        raise not_of_this_run(path, error) from error
    return content


def read_resume(path: Path, expected: Mapping[str, Any], steps: int) -> Mapping[str, Any]:
    """A resume.ckpt that fits a run.

    Args:
        path: The file.
        expected: What the run would write itself.
        steps: Of the run; it cannot have done more.

    Raises:
        InputError: It is missing or damaged, or of another run.
    """
    content = _read(path)
    try:
        _require_like(content, _with_processes(expected, content))
        if content["step"] > steps:
            raise Unlike(f"step: expected {steps} at most, found {content['step']}")
        scaler = content["scaler"]
        _require(scaler["scale"] > 0, scaler["scale"], "more than 0", "scaler.scale")
        for name in set(scaler) - {"scale", "_growth_tracker"}:
            _require_equal(scaler[name], expected["scaler"][name], f"scaler.{name}")
        for name, own in expected["recipe"].items():
            if name != "statistics":
                path_there = f"recipe.{name}.optimizer"
                _require_optimizer(
                    content["recipe"][name]["optimizer"], own["optimizer"], path_there
                )
    except Unlike as error:
        raise not_of_this_run(path, error) from error
    return content


def _with_processes(expected: Mapping[str, Any], content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is expected, with the statistics of as many processes as the file has them of."""
    recipe = expected["recipe"]
    found = (
        content["recipe"].get("statistics") if isinstance(content.get("recipe"), Mapping) else None
    )
    count = len(found) if isinstance(found, list) and found else 1
    return {**expected, "recipe": {**recipe, "statistics": recipe["statistics"][:1] * count}}


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


def _require_optimizer(found: Any, expected: Any, path: str) -> None:
    """Hold an optimizer's options, but for the learning rate, and its numbers of steps against its
    own; it is like the expected one."""
    for group, own in zip(found["param_groups"], expected["param_groups"], strict=True):
        for key in set(own) - {"lr"}:
            _require_equal(group[key], own[key], f"{path}.param_groups.{key}")
    for name, values in found["state"].items():
        for key, value in values.items():
            if not value.dim():
                number = value.item()
                count = 0 <= number <= _MOST and number == int(number)
                _require(count, number, "a count", f"{path}.state.{name}.{key}")


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
    return (_tensor(value) or f"{type(value).__name__} {_text(value)}")[:_SHOWN]


def _text(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:  # lists in lists without end
        return "of too many levels"


def _join(path: str, name: Any) -> str:
    text = name if isinstance(name, str) and name.isprintable() else _text(name)
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{path}.{short}" if path else short
