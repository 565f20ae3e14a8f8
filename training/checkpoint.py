"""What a checkpoint file means: which tensors are the model, and whether they are a whole one.

Layouts that are read, recognised by the names of their tensors: AR files (transformer.* +
first_stage_model.*) and tokenizer files (encoder.*, decoder.*, and model_ema.*, whose names have
their dots removed), with or without a training run's other tensors, as a plain dict of tensors or
under state_dict. Names inside m2kit are canonical: encoder.*, decoder.*, transformer.*.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2kit.config import PRESETS, ModelSpec
from m2kit.errors import CheckpointError, M2KitError
from m2kit.folders import sha256_of_file
from m2kit.runtime.sampling import DEFAULTS, own_sampling
from m2kit.training.architecture import Reading, read_architecture
from m2kit.training.checkpoint_file import METADATA, Content, read_file
from m2kit.training.models.model import (
    TRANSFORMER,
    TorchModel,
    expected_shapes,
    model_from_tensors,
)

FIRST_STAGE = "first_stage_model."
EMA = "model_ema."
_JUNK = re.compile(
    r"(first_stage_model\.)?(loss|model_ema)\.|(cond_stage_model|permuter)\.|.*\.kv_cache\."
)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LISTED = 10  # keys named in an error
_NOTES_VALUES, _NOTES_DEPTH = 10_000, 20  # at most, in what a trainer noted
_PARTS = ("sampling", "training")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint: complete, finite, of a known architecture.

    Attributes:
        spec: The architecture.
        files: Where the tensors are.
        source: sha256 of the file, which weights were taken, which presets have this
            architecture, what was assumed about it; and of another tokenizer's file.
        sampling: The model's own guidance, temperature, top_k and top_p, one value per sub-token
            (empty for a tokenizer).
        training: What the trainer noted about the run (may be empty).
    """

    spec: ModelSpec
    files: tuple[NamedFile, ...]
    source: dict[str, Any]
    sampling: dict[str, Any]
    training: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name -> tensor in the file's dtype, mapped anew: drop it to free the memory.

        Raises:
            CheckpointError: The file was changed since it was checked.
        """
        return {name: t for file in self.files for name, t in file.tensors().items()}


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A checkpoint file and the tensors of it that are taken.

    Attributes:
        path: The file.
        names: Canonical name -> name in the file.
        state: Size and modification time when it was checked.
    """

    path: Path
    names: dict[str, str]
    state: tuple[int, int]

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name -> tensor."""
        if _state(self.path) != self.state:
            raise CheckpointError(f"{self.path} was changed while it was read; run it again")
        content = read_file(self.path, check=False)
        return {name: content.tensors[stored] for name, stored in self.names.items()}


def read_checkpoint(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    preset: str | None = None,
    weights: str | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """Read and check a checkpoint file.

    Args:
        path: The file.
        overrides: Spec fields that shapes do not tell, such as {"heads": 20}.
        preset: The published model that tells them where `overrides` does not.
        weights: "ema" or "live" for a tokenizer file; None takes the EMA weights if it has any.
        tokenizer: A tokenizer file that replaces the tokenizer of an AR file.

    Raises:
        CheckpointError: Not a checkpoint, not safe, incomplete, misshaped or not finite.
        SpecError: The architecture is not told by the file, the overrides and the preset.
    """
    overrides = dict(overrides or {})
    content = read_file(path, check=True)
    other = None
    if tokenizer is not None:
        if not _has_transformer(content):
            raise CheckpointError(
                f"{path} holds a tokenizer only; --tokenizer replaces the one of an AR file"
            )
        other = _tokenizer_of(tokenizer, weights)
        overrides = {"bit_order": other.spec.tokenizer.bit_order} | overrides
    names, taken = _chosen(path, content.tensors, weights, other)
    own = NamedFile(path, names, _state(path))
    named = {name: content.tensors[stored] for name, stored in names.items()}
    if other is not None:
        named |= other.tensors()
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    try:
        notes = _notes(content)
        found = read_architecture(shapes, overrides, notes.spec, preset)
        _check_complete(named, found.spec)
        sampling = _sampling(found, notes.sampling)
    except M2KitError as error:
        raise type(error)(f"{path}: {error}") from error
    source = {
        "checkpoint_sha256": sha256_of_file(path),
        "weights": taken,
        "presets": list(found.presets),
        "assumed": found.assumed,
    }
    if other is not None:
        source |= {f"tokenizer_{n}": other.source[n] for n in ("checkpoint_sha256", "weights")}
        source["assumed"] = other.source["assumed"] | found.assumed
    return Checkpoint(
        spec=found.spec,
        files=(own, *(other.files if other else ())),
        source=source,
        sampling=sampling,
        training=notes.training,
    )


def _tokenizer_of(path: Path, weights: str | None) -> Checkpoint:
    if _has_transformer(read_file(path, check=False)):
        raise CheckpointError(f"{path} is an AR file; --tokenizer takes a tokenizer file")
    return read_checkpoint(path, weights=weights)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _has_transformer(content: Content) -> bool:
    return any(name.startswith(TRANSFORMER) for name in content.tensors)


@dataclass(frozen=True, slots=True)
class _Notes:
    """What m2kit's own trainers add to a file."""

    spec: ModelSpec | None
    sampling: dict[str, Any]
    training: dict[str, Any]


def _notes(content: Content) -> _Notes:
    if content.notes is None:
        return _Notes(None, {}, {})
    value = _plain(content.notes, _NOTES_DEPTH, [_NOTES_VALUES])
    parts = [value.get(name, {}) if isinstance(value, dict) else None for name in _PARTS]
    if not isinstance(value, dict) or not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"its {METADATA!r} entry is not plain data")
    spec = ModelSpec.from_json(value["spec"]) if "spec" in value else None
    return _Notes(spec, *parts)


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A copy in JSON's types; `left` counts down: a small pickle can hold an endless structure."""
    left[0] -= 1
    if depth and left[0] >= 0:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [_plain(item, depth - 1, left) for item in value]
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {name: _plain(item, depth - 1, left) for name, item in value.items()}
    raise CheckpointError(f"its {METADATA!r} entry is not plain data")


def _sampling(found: Reading, stored: dict[str, Any]) -> dict[str, Any]:
    """The model's own sampling, one value per sub-token: the file's, else its authors'."""
    if found.spec.transformer is None:
        return {}
    options = PRESETS[found.presets[0]].sampling if found.presets else {}
    options |= {name: stored[name] for name in DEFAULTS if name in stored}
    return own_sampling(options, len(found.spec.bits))


def model_from_checkpoint(checkpoint: Checkpoint) -> TorchModel:
    """The PyTorch model of a checkpoint, float32, in evaluation mode."""
    return model_from_tensors(checkpoint.spec, checkpoint.tensors())


def _chosen(
    path: Path, tensors: Iterable[str], weights: str | None, other: Checkpoint | None
) -> tuple[dict[str, str], str]:
    """Canonical name -> name in the file, without junk, and which weights they are."""
    kept = [name for name in tensors if not _JUNK.match(name)]
    if any(name.startswith(TRANSFORMER) for name in kept):
        return _chosen_of_ar(path, kept, weights, other), "stored"
    if not any(name.startswith("encoder.") for name in kept):
        raise CheckpointError(
            f"{path} is not an Open-MAGVIT2 checkpoint: expected tensors named encoder.* and "
            f"decoder.*, or transformer.*; found {sorted(tensors)[:3] or 'no tensors'}"
        )
    stored = set(tensors)
    has_ema = any(name.startswith(EMA) for name in stored)
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{path} has no EMA weights ({EMA}*); use --weights live")
    if weights == "live" or not has_ema:
        return {name: name for name in kept}, "live"
    mangled = {name: ema_name(name) for name in kept}
    missing = [ema for ema in mangled.values() if ema not in stored]
    if missing:
        raise CheckpointError(f"{path} lacks EMA tensors: {_listing(missing)}; use --weights live")
    return mangled, "ema"


def _chosen_of_ar(
    path: Path, kept: list[str], weights: str | None, other: Checkpoint | None
) -> dict[str, str]:
    own = [name for name in kept if name.startswith(FIRST_STAGE)]
    if other is not None:
        return {name: name for name in kept if name not in own}
    if not own:
        raise CheckpointError(f"{path} holds no tokenizer; give one with --tokenizer FILE")
    if weights == "ema":
        raise CheckpointError(
            f"{path} is an AR file: it holds one set of weights, no EMA; --weights ema is for a "
            "tokenizer file"
        )
    names = {name.removeprefix(FIRST_STAGE): name for name in kept}
    twice = [name for name in own if names[name.removeprefix(FIRST_STAGE)] != name]
    if twice:
        raise CheckpointError(f"{path} holds with and without prefix: {_listing(twice)}")
    return names


def ema_name(name: str) -> str:
    """Where a tokenizer file keeps the EMA of a tensor: its dots are removed."""
    return EMA + name.replace(".", "")


def _check_complete(named: dict[str, Tensor], spec: ModelSpec) -> None:
    expected = expected_shapes(spec)
    missing = [name for name in expected if name not in named]
    unexpected = [name for name in named if name not in expected]
    misshaped = [
        f"{name} (expected {list(shape)}, found {list(named[name].shape)})"
        for name, shape in expected.items()
        if name in named and tuple(named[name].shape) != shape
    ]
    bad = [
        name
        for name, shape in expected.items()
        if name in named and tuple(named[name].shape) == shape and not _is_sound(named[name])
    ]
    problems = [
        f"{what}: {_listing(names)}"
        for what, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("misshaped tensors", misshaped),
            ("tensors that are not dense finite floats", bad),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"not a whole model; {'; '.join(problems)}")


def _is_sound(tensor: Tensor) -> bool:
    """Whether a tensor is a dense one of finite floats, with a value in memory for each element."""
    return bool(
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _FLOATS
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
        and torch.isfinite(tensor.float()).all()
    )


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, ... ({len(names)} in all)"
