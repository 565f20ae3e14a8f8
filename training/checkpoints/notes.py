"""What m2kit's own trainers add to a checkpoint: spec, sampling defaults, notes on the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2kit.config import ModelSpec
from m2kit.errors import CheckpointError
from m2kit.records import JsonObject

METADATA = "m2kit"  # top-level key of a checkpoint
_NOT_PLAIN = f"its {METADATA!r} entry is not plain data"
_MOST = 200_000  # values and characters: a small pickle can hold an endless structure
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Notes:
    """A checked entry; everything is empty where a file has none.

    Attributes:
        spec: The architecture.
        sampling: Some of the model's own guidance, temperature, top_k and top_p.
        training: What the trainer noted about the run.
    """

    spec: ModelSpec | None
    sampling: JsonObject
    training: JsonObject


def read_notes(entry: Any) -> Notes:
    """The notes of a checkpoint's entry (None: it has none).

    Raises:
        CheckpointError: Not plain data.
        SpecError: Its spec cannot be.
    """
    if entry is None:
        return Notes(None, {}, {})
    value = _plain(entry, _DEEPEST, [_MOST])
    if not isinstance(value, dict):
        raise CheckpointError(_NOT_PLAIN)
    sampling, training = value.get("sampling", {}), value.get("training", {})
    if not isinstance(sampling, dict) or not isinstance(training, dict):
        raise CheckpointError(_NOT_PLAIN)
    spec = ModelSpec.from_json(value["spec"]) if "spec" in value else None
    return Notes(spec, sampling, training)


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A copy in JSON's types; `left` counts down over the whole copy."""
    left[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if depth and left[0] >= 0:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str) and value.isprintable():
            return value
        if isinstance(value, (list, tuple)):
            return [_plain(item, depth - 1, left) for item in value]
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {
                _plain(name, depth, left): _plain(item, depth - 1, left)
                for name, item in value.items()
            }
    raise CheckpointError(_NOT_PLAIN)
