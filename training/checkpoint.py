"""Checkpoint files: reading the official layouts safely, and writing them.

A file is data: it is unpickled with weights only, so nothing in it is ever executed. Layouts that
are read: AR files (transformer.* + first_stage_model.*) and tokenizer files (encoder.*, decoder.*,
and model_ema.*, whose names have their dots removed), with or without a training run's other
tensors. Names inside m2kit are canonical: encoder.*, decoder.*, transformer.*.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2kit.config import ModelSpec
from m2kit.errors import CheckpointError, M2KitError
from m2kit.folders import new_file, sha256_of_file
from m2kit.runtime.sampling import DEFAULTS, Sampling
from m2kit.training.architecture import Reading, read_architecture
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer

METADATA = "m2kit"  # top-level key of what m2kit's own trainers add to a file
FIRST_STAGE = "first_stage_model."
EMA = "model_ema."
_JUNK = re.compile(r"(loss|model_ema|cond_stage_model|permuter)\.|.*\.kv_cache\.")
_LISTED = 10  # keys named in an error


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint.

    Attributes:
        spec: The architecture.
        weights: Canonical name -> tensor, complete and finite, in the file's dtype.
        source: File sha256, which weights were taken, what was assumed about the architecture.
        sampling: The model's own guidance, temperature, top_k and top_p, one value per sub-token
            (empty for a tokenizer).
        training: What the trainer noted about the run (may be empty).
    """

    spec: ModelSpec
    weights: dict[str, Tensor]
    source: dict[str, Any]
    sampling: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A model in PyTorch: the tokenizer, and the transformer where there is one."""

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: Transformer | None


def read_checkpoint(
    path: Path, *, overrides: Mapping[str, Any] | None = None, weights: str | None = None
) -> Checkpoint:
    """Read and check a checkpoint file.

    Args:
        path: The file.
        overrides: Spec fields that shapes do not tell, such as {"heads": 20}.
        weights: "ema" or "live" for a tokenizer file; None takes the EMA weights if it has any.

    Raises:
        CheckpointError: Not a checkpoint, not safe, incomplete, misshaped or not finite.
        SpecError: The architecture is not told by the file and the overrides.
    """
    content = _load(path)
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path}: its state_dict is a {type(tensors).__name__}, not a dict")
    tensors = {
        name: t for name, t in tensors.items() if isinstance(name, str) and isinstance(t, Tensor)
    }
    named, taken = _canonical(path, tensors, weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    try:
        notes = _notes(content)
        found = read_architecture(shapes, overrides or {}, notes.spec)
        _check_complete(named, found.spec)
        sampling = _sampling(found, notes.sampling)
    except M2KitError as error:
        raise type(error)(f"{path}: {error}") from error
    return Checkpoint(
        spec=found.spec,
        weights=named,
        source={
            "checkpoint_sha256": sha256_of_file(path),
            "weights": taken,
            "assumed": found.assumed,
        },
        sampling=sampling,
        training=notes.training,
    )


@dataclass(frozen=True, slots=True)
class _Notes:
    """What m2kit's own trainers add to a file."""

    spec: ModelSpec | None
    sampling: dict[str, Any]
    training: dict[str, Any]


def _notes(content: Mapping[str, Any]) -> _Notes:
    value = content.get(METADATA, {})
    try:
        value = json.loads(json.dumps(value))
        parts = [value.get(name, {}) for name in ("sampling", "training")]
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its {METADATA!r} entry is not plain data") from error
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"its {METADATA!r} entry is not plain data")
    spec = ModelSpec.from_json(value["spec"]) if "spec" in value else None
    return _Notes(spec, *parts)


def _sampling(found: Reading, stored: dict[str, Any]) -> dict[str, Any]:
    """The model's own sampling, one value per sub-token: the file's, else its authors'."""
    if found.spec.transformer is None:
        return {}
    options: dict[str, Any] = {}
    if found.preset is not None:
        options = {
            "guidance": found.preset.guidance,
            "temperature": found.preset.temperature,
        }
    options |= {name: stored[name] for name in DEFAULTS if name in stored}
    resolved = Sampling(**options).resolve(len(found.spec.bits), {})
    return {name: list(getattr(resolved, name)) for name in DEFAULTS}


def model_from_checkpoint(checkpoint: Checkpoint) -> TorchModel:
    """The PyTorch model of a checkpoint, float32, in evaluation mode."""
    spec = checkpoint.spec
    tokenizer, transformer = _modules(spec, torch.device("meta"))
    for prefix, module in (("", tokenizer), ("transformer.", transformer)):
        if module is not None:
            state = {
                name: checkpoint.weights[prefix + name].float() for name in module.state_dict()
            }
            module.load_state_dict(state, assign=True)
            module.eval().requires_grad_(False)
    if transformer is not None:
        transformer.reset_rope()
    return TorchModel(spec, tokenizer, transformer)


def _modules(spec: ModelSpec, device: torch.device) -> tuple[Tokenizer, Transformer | None]:
    with device:
        return (
            Tokenizer(spec.tokenizer),
            Transformer(spec.transformer) if spec.transformer else None,
        )


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected a checkpoint file, found {found}")
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise CheckpointError(
                    f"{path} is damaged: the CRC-32 of its record {damaged} is wrong; "
                    "fetch the file again"
                )
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        if match:
            raise CheckpointError(
                f"{path} asks to load {match.group(1) or match.group(2)}, which is more than "
                "weights; it was refused and nothing was run. Save the state_dict alone"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch checkpoint") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a PyTorch checkpoint ({reason[:200]})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict with a state_dict"
        )
    return content


def _canonical(
    path: Path, tensors: dict[str, Tensor], weights: str | None
) -> tuple[dict[str, Tensor], str]:
    """Canonically named tensors without junk, and which weights they are."""
    if any(name.startswith("transformer.") for name in tensors):
        if weights == "ema":
            raise CheckpointError(f"{path} is an AR file: it holds one set of weights, no EMA")
        kept = {name: t for name, t in tensors.items() if not _JUNK.match(name)}
        return {name.removeprefix(FIRST_STAGE): t for name, t in kept.items()}, "stored"
    live = {name: t for name, t in tensors.items() if not _JUNK.match(name)}
    if not any(name.startswith("encoder.") for name in live):
        raise CheckpointError(
            f"{path} is not an Open-MAGVIT2 checkpoint: expected tensors named encoder.* and "
            f"decoder.*, or transformer.*; found {sorted(tensors)[:3] or 'no tensors'}"
        )
    has_ema = any(name.startswith(EMA) for name in tensors)
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{path} has no EMA weights ({EMA}*); use --weights live")
    if weights == "live" or not has_ema:
        return live, "live"
    mangled = {name: EMA + name.replace(".", "") for name in live}
    missing = [ema for ema in mangled.values() if ema not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks EMA tensors: {_listing(missing)}; use --weights live")
    return {name: tensors[ema] for name, ema in mangled.items()}, "ema"


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
        for name in expected
        if name in named
        and not (
            named[name].layout == torch.strided
            and named[name].is_floating_point()
            and torch.isfinite(named[name]).all()
        )
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


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor a model of this spec has."""
    tokenizer, transformer = _modules(spec, torch.device("meta"))
    shapes = {name: tuple(t.shape) for name, t in tokenizer.state_dict().items()}
    if transformer is not None:
        state = transformer.state_dict()
        shapes |= {f"transformer.{name}": tuple(t.shape) for name, t in state.items()}
    return shapes


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, ... ({len(names)} in all)"


def write_tokenizer_checkpoint(
    path: Path, live: nn.Module, ema: nn.Module, metadata: dict[str, Any]
) -> None:
    """Write a tokenizer file in the official layout: live weights, and EMA with dots removed."""
    state = {name: tensor.detach().clone() for name, tensor in live.state_dict().items()}
    averaged = {EMA + n.replace(".", ""): t.detach().clone() for n, t in ema.state_dict().items()}
    averaged[f"{EMA}decay"] = torch.tensor(metadata["training"]["ema_decay"])
    averaged[f"{EMA}num_updates"] = torch.tensor(-1, dtype=torch.int32)
    save_whole({"state_dict": state | averaged, METADATA: metadata}, path)


def write_ar_checkpoint(
    path: Path, tokenizer: nn.Module, transformer: nn.Module, metadata: dict[str, Any]
) -> None:
    """Write an AR file in the official layout, with its tokenizer inside."""
    state = {f"transformer.{n}": t.detach().clone() for n, t in transformer.state_dict().items()}
    state |= {FIRST_STAGE + n: t.detach().clone() for n, t in tokenizer.state_dict().items()}
    save_whole({"state_dict": state, METADATA: metadata}, path)


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
        torch.save(content, kept)
        if kept.error is not None:
            raise kept.error
