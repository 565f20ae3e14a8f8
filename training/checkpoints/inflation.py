"""A video tokenizer made of an image tokenizer, from which the published one was trained: of one
frame it computes what the image tokenizer does.

A 2-D kernel becomes the last temporal slice of a 3-D one, which sees the frame itself, and the
others are zero. Where time is doubled, a convolution has twice the channels: the kernel stands
twice, for each of two frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2kit.config import ModelSpec
from m2kit.errors import CheckpointError, SpecError
from m2kit.families.image import ImageTokenizerSpec
from m2kit.families.video import video_spec
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.checkpoints.writing import EMA_DECAY, write_tokenizer_checkpoint
from m2kit.training.models.model import expected_shapes

_CONVOLUTION = ".conv_1."  # in a name: the module inside that of a video's convolution


def inflated_spec(image: ModelSpec) -> ModelSpec:
    """The video tokenizer of an image tokenizer, for clips as long as the released one's.

    Raises:
        SpecError: No image tokenizer, or one with a transformer.
    """
    tokenizer: Any = image.tokenizer
    if image.transformer is not None or not isinstance(tokenizer, ImageTokenizerSpec):
        what = "an AR model" if image.transformer else f"a {tokenizer.family} tokenizer"
        raise SpecError(f"a video tokenizer is made of an image tokenizer's file, found {what}")
    return ModelSpec(video_spec(**asdict(tokenizer)), None)


def write_inflated_checkpoint(path: Path, source: Path, expected: ModelSpec | None = None) -> None:
    """Write the video tokenizer of an image tokenizer, live and EMA weights alike.

    Args:
        path: The file.
        source: A checkpoint file of an image tokenizer; one without EMA gives its live weights.
        expected: The video tokenizer that it must become.

    Raises:
        CheckpointError: Not the file of an image tokenizer, or it becomes another one.
        FolderError: The file cannot be written.
    """
    averaged = read_checkpoint(source)
    try:
        spec = inflated_spec(averaged.spec)
    except SpecError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if expected is not None and spec != expected:
        raise CheckpointError(f"{source} becomes another model: {_differences(spec, expected)}")
    live = read_checkpoint(source, weights="live")
    write_tokenizer_checkpoint(
        path,
        inflated(live.tensors(), spec),
        inflated(averaged.tensors(), spec),
        ema_decay=EMA_DECAY,
        notes={
            "spec": spec.to_json(),
            "training": {"inflated_from_sha256": averaged.source.checkpoint_sha256},
        },
    )


def inflated(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of a video tokenizer, made of those of the image tokenizer of the same fields.

    Args:
        tensors: Canonical name -> tensor of the image tokenizer.
        spec: The video tokenizer's.
    """
    made = {}
    for name, shape in expected_shapes(spec).items():
        tensor = tensors[name.replace(_CONVOLUTION, ".")]
        frames = shape[0] // len(tensor)  # 2 where time is doubled
        tensor = tensor.repeat(frames, *[1] * (tensor.ndim - 1)) if frames > 1 else tensor
        if len(shape) == 5:
            kernel = torch.zeros(shape, dtype=tensor.dtype)
            kernel[:, :, -1] = tensor
            tensor = kernel
        made[name] = tensor
    return made


def _differences(found: ModelSpec, expected: ModelSpec) -> str:
    own, wanted = found.to_json()["tokenizer"], expected.to_json()["tokenizer"]
    return "; ".join(
        f"{name} is {own[name]}, expected {value}"
        for name, value in wanted.items()
        if own[name] != value
    )
