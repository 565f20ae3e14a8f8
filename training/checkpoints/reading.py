"""What a checkpoint file means: which tensors are the model, and whether they are a whole one.

Layouts that are read, recognised by the names of their tensors: AR files (transformer.* +
first_stage_model.*) and tokenizer files (encoder.*, decoder.*, and model_ema.*, whose names have
their dots removed), with or without a training run's other tensors, as a plain dict of tensors or
under state_dict. Names inside m2kit are canonical: encoder.*, decoder.*, transformer.*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2kit.config import PRESETS, ModelSpec
from m2kit.errors import CheckpointError, M2KitError
from m2kit.hashes import sha256_of_file
from m2kit.manifest import Source
from m2kit.records import JsonObject
from m2kit.sampling import OFF, SamplingDefaults
from m2kit.training.checkpoints.architecture import Reading, read_architecture
from m2kit.training.checkpoints.file import Content, read_file
from m2kit.training.checkpoints.notes import read_notes
from m2kit.training.models.model import (
    TRANSFORMER,
    TorchModel,
    expected_shapes,
    model_from_tensors,
)

FIRST_STAGE = "first_stage_model."
EMA = "model_ema."
_JUNK = re.compile(r"(first_stage_model\.)?(loss|model_ema)\.|.*\.kv_cache\.")
_MODEL = re.compile(r"(first_stage_model\.)?(encoder|decoder|transformer)\.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LISTED = 10  # keys named in an error


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint: complete, finite, of a known architecture.

    Attributes:
        spec: The architecture.
        files: Where the tensors are.
        source: Of the file: sha256, bytes, dtypes, which weights were taken; of the architecture:
            the preset the user named, those that are the same, what was assumed; and which other
            file the tokenizer is from.
        sampling: The model's own guidance, temperature, top_k and top_p, one value per sub-token
            (None for a tokenizer).
        training: What the trainer noted about the run (may be empty).
    """

    spec: ModelSpec
    files: tuple[NamedFile, ...]
    source: Source
    sampling: SamplingDefaults | None
    training: JsonObject

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name -> tensor in the file's dtype, mapped anew: drop it to free the memory.

        Raises:
            CheckpointError: The file was changed since it was checked.
        """
        return {name: t for file in self.files for name, t in file.tensors().items()}

    def loader(self) -> Callable[[str], npt.NDArray[np.float32]]:
        """Canonical name -> float32 array, of the tensors mapped now."""
        tensors = self.tensors()
        return lambda name: tensors[name].float().numpy()


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


_WITHOUT_EMA = "tensors without EMA (the live weights are others)"


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
    content = read_file(path, check=True)
    given, other = dict(overrides or {}), None
    if tokenizer is not None:
        other = _tokenizer_of(tokenizer, weights, path, content)
        given = {"bit_order": other.spec.tokenizer.bit_order} | given
    names, taken = _chosen(path, content, weights, other)
    named = {name: content.tensors[stored] for name, stored in names.items()}
    if other is not None:
        named |= other.tensors()
    try:
        _check_dense(named)
        notes = read_notes(content.notes)
        stored_spec = notes.spec
        if other is not None and stored_spec is not None:
            stored_spec = replace(stored_spec, tokenizer=other.spec.tokenizer)
        shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        found = read_architecture(shapes, given, stored_spec, preset)
        live = [name for name, stored in names.items() if name == stored and taken == "ema"]
        _check_complete(named, found.spec, live)
        sampling = _sampling(found, notes.sampling)
    except M2KitError as error:
        raise type(error)(f"{path}: {error}", option=error.option) from error
    return Checkpoint(
        spec=found.spec,
        files=(NamedFile(path, names, _state(path)), *(other.files if other else ())),
        source=_source(path, named, taken, found, other, overrides or {}),
        sampling=sampling,
        training=notes.training,
    )


def _source(
    path: Path,
    named: Mapping[str, Tensor],
    taken: str,
    found: Reading,
    other: Checkpoint | None,
    overrides: Mapping[str, Any],
) -> Source:
    """Where a checkpoint came from, a replacing tokenizer's file included."""
    of_other = other.source.assumed if other else {}
    assumed = {n: v for n, v in of_other.items() if n not in overrides} | found.assumed
    return Source(
        checkpoint_sha256=sha256_of_file(path),
        checkpoint_bytes=path.stat().st_size,
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in named.values()})),
        weights=taken,
        same_as=found.same_as,
        assumed=assumed,
        preset=found.preset,
        tokenizer_sha256=other.source.checkpoint_sha256 if other else None,
        tokenizer_weights=other.source.weights if other else None,
    )


def _tokenizer_of(path: Path, weights: str | None, ar_path: Path, ar: Content) -> Checkpoint:
    if not _has_transformer(ar):
        raise CheckpointError(
            f"{ar_path} holds a tokenizer only; another one replaces that of an AR file",
            option="--tokenizer",
        )
    if _has_transformer(read_file(path, check=False)):
        raise CheckpointError(f"{path} is an AR file; give a tokenizer file", option="--tokenizer")
    return read_checkpoint(path, weights=weights)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _has_transformer(content: Content) -> bool:
    return any(name.startswith(TRANSFORMER) for name in content.tensors)


def _sampling(found: Reading, stored: JsonObject) -> SamplingDefaults | None:
    """The model's own sampling, one value per sub-token: the file's, else its authors'."""
    if found.spec.transformer is None:
        return None
    presets = (found.preset, *found.same_as)
    options: JsonObject = next((PRESETS[name].sampling for name in presets if name), {})
    options |= {name: stored[name] for name in OFF if name in stored}
    return SamplingDefaults.of(options, found.spec.sub_tokens)


def model_from_checkpoint(checkpoint: Checkpoint) -> TorchModel:
    """The PyTorch model of a checkpoint, float32, in evaluation mode."""
    return model_from_tensors(checkpoint.spec, checkpoint.tensors())


def _chosen(
    path: Path, content: Content, weights: str | None, other: Checkpoint | None
) -> tuple[dict[str, str], str]:
    """Canonical name -> name in the file, without junk, and which weights they are."""
    odd = [name for name in content.others if _MODEL.match(name)]
    if odd:
        raise CheckpointError(f"{path} holds under names of tensors what is none: {_listing(odd)}")
    kept = [name for name in content.tensors if not _JUNK.match(name)]
    if _has_transformer(content):
        return _chosen_of_ar(path, kept, weights, other), "stored"
    if not any(name.startswith("encoder.") for name in kept):
        raise CheckpointError(
            f"{path} is not an Open-MAGVIT2 checkpoint: expected tensors named encoder.* and "
            f"decoder.*, or transformer.*; found {sorted(content.tensors)[:3] or 'no tensors'}"
        )
    has_ema = any(name.startswith(EMA) for name in content.tensors)
    if weights == "ema" and not has_ema:
        raise CheckpointError(
            f"{path} has no EMA weights ({EMA}*); take the live ones", option="--weights live"
        )
    if weights == "live" or not has_ema:
        return {name: name for name in kept}, "live"
    mangled = {name: ema_name(name) for name in kept}
    return {n: ema if ema in content.tensors else n for n, ema in mangled.items()}, "ema"


def _chosen_of_ar(
    path: Path, kept: list[str], weights: str | None, other: Checkpoint | None
) -> dict[str, str]:
    own = [name for name in kept if name.startswith(FIRST_STAGE)]
    if other is not None:
        return {name: name for name in kept if name not in own}
    if not own:
        raise CheckpointError(f"{path} holds no tokenizer; give one", option="--tokenizer FILE")
    if weights == "ema":
        raise CheckpointError(
            f"{path} is an AR file: it holds one set of weights, no EMA, which a "
            "tokenizer file may have",
            option="--weights ema",
        )
    names = {name.removeprefix(FIRST_STAGE): name for name in kept}
    twice = [name for name in own if names[name.removeprefix(FIRST_STAGE)] != name]
    if twice:
        raise CheckpointError(f"{path} holds with and without prefix: {_listing(twice)}")
    return names


def ema_name(name: str) -> str:
    """Where a tokenizer file keeps the EMA of a tensor: its dots are removed."""
    return EMA + name.replace(".", "")


def _check_dense(named: Mapping[str, Tensor]) -> None:
    """Before shapes mean anything: each element has its own place in memory."""
    bad = [
        name
        for name, tensor in named.items()
        if tensor.layout != torch.strided
        or tensor.dtype not in _FLOATS
        or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
    ]
    if bad:
        raise CheckpointError(
            f"not a whole model; tensors that are no dense floats: {_listing(bad)}"
        )


def _check_complete(named: Mapping[str, Tensor], spec: ModelSpec, live: list[str]) -> None:
    """Every tensor of the spec, no other, each of its shape and finite; `live` ones lack EMA."""
    expected = expected_shapes(spec)
    present = {name: shape for name, shape in expected.items() if name in named}
    right = [name for name, shape in present.items() if tuple(named[name].shape) == shape]
    misshaped = [
        f"{name} (expected {list(shape)}, found {list(named[name].shape)})"
        for name, shape in present.items()
        if name not in right
    ]
    kinds = {
        "missing tensors": [name for name in expected if name not in named],
        "unexpected tensors": [name for name in named if name not in expected],
        "misshaped tensors": misshaped,
        "tensors with NaN or Inf": [n for n in right if not named[n].float().isfinite().all()],
        _WITHOUT_EMA: [n for n in live if n in expected],
    }
    problems = [f"{what}: {_listing(names)}" for what, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"not a whole model; {'; '.join(problems)}",
            option="--weights live" if kinds[_WITHOUT_EMA] else "",
        )


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, ... ({len(names)} in all)"
