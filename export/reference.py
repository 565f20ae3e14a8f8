"""Makes the reference that travels with a bundle: inputs, and what PyTorch computes from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.export.maxima import ProbeBackend
from m2kit.export.writer import GraphWriter
from m2kit.families.sizes import misfit
from m2kit.manifest import Manifest
from m2kit.progress import Begin
from m2kit.runtime.engine import Engine
from m2kit.runtime.reference import Reference, Trajectory
from m2kit.runtime.sampling import uniforms
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import Checkpoint, model_from_checkpoint
from m2kit.training.models.model import TorchModel
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend

_IMAGES = 2
_LARGE_PARAMETERS = 100_000_000  # from here on one image: time and disk, and batches change nothing
_MOST_PIXELS = 2**20  # of one picture: the first level of 128 channels is half a gigabyte
_TOKENIZER_GRID = (2, 4, 6)  # latent grid of what checks a tokenizer alone, its last axes

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model is run on.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1].
        class_ids: (B) int64 of a trajectory; none for a tokenizer alone.
        guidance: (K) float64 of the trajectory.
    """

    images: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    guidance: npt.NDArray[np.float64]


def make_reference(
    checkpoint: Checkpoint,
    folder: Path,
    manifest: Manifest,
    writers: Mapping[str, GraphWriter],
    begin: Begin,
    size: tuple[int, ...] | None = None,
) -> tuple[Reference, dict[str, dict[str, float]]]:
    """The reference, and graph -> value -> its absolute maximum.

    Args:
        checkpoint: The model; its weights are in memory once: ONNX Runtime's, then PyTorch's.
        folder: Where the graphs are.
        manifest: What they are.
        writers: Of the portable graphs, which watch the values.
        begin: Called with the name of each stage as it begins.
        size: Pixels along each axis of what checks a tokenizer alone; None is a small one.
    """
    spec, inputs = checkpoint.spec, make_inputs(checkpoint.spec, size)
    advance = begin("decoding a trajectory with ONNX Runtime", spec.positions)
    with ProbeBackend(folder, manifest, writers) as probe:
        engine = Engine(spec, probe)
        tokens = engine.encode(inputs.images)
        if spec.transformer is not None:
            sampling = Sampling(guidance=tuple(inputs.guidance.tolist()), greedy=True)
            for drawn in engine.generate(inputs.class_ids, sampling):
                tokens = drawn.tokens
                advance(1)
        engine.decode(tokens)
    begin("scoring it with PyTorch")
    return score_in_torch(model_from_checkpoint(checkpoint), inputs, tokens), probe.maxima()


def check_size(spec: ModelSpec, size: tuple[int, ...]) -> None:
    """Refuse a size of pictures on which a model cannot be compared.

    Raises:
        InputError: The model does not take it, or has a size of its own.
    """
    if spec.image_size is not None and size != spec.image_size:
        own = " x ".join(map(str, spec.image_size))
        raise InputError(f"this model draws {own} pixels and is compared at these")
    if wrong := misfit(spec.tokenizer, size):
        raise InputError(f"image size {','.join(map(str, size))}: {wrong}")
    if math.prod(size) > _MOST_PIXELS:
        raise InputError(
            f"image size {','.join(map(str, size))}: a comparison takes {_MOST_PIXELS:,} pixels at "
            f"most, these are {math.prod(size):,}"
        )
    spec.tokenizer.check_grid(spec.grid_of_size(size))


def make_inputs(spec: ModelSpec, size: tuple[int, ...] | None = None) -> Inputs:
    """Images of a size, and classes and guidance of a trajectory."""
    parameters = sum(spec.parameter_counts().values())
    small = spec.size_of_grid(_TOKENIZER_GRID[-len(spec.tokenizer.axes) :])
    size = spec.image_size or size or small
    count = _IMAGES if parameters < _LARGE_PARAMETERS else 1
    classes = spec.transformer.classes if spec.transformer else 1
    return Inputs(
        images=_images(size, count),
        class_ids=np.linspace(0, classes - 1, _IMAGES).astype(np.int64)[-count:],
        guidance=np.array([2.0 + 0.5 * k for k in range(spec.sub_tokens)]),
    )


def score_in_torch(model: TorchModel, inputs: Inputs, tokens: npt.NDArray[np.int64]) -> Reference:
    """The reference of a model.

    Args:
        model: The model in PyTorch; computes everything that is compared.
        inputs: What `make_inputs` gave.
        tokens: (B, h, w, K) of the trajectory; a tokenizer alone takes its own code tokens.
    """
    trajectory = None
    if model.transformer is not None:
        logits = _logits(model.transformer, inputs.class_ids, tokens)
        trajectory = Trajectory(inputs.class_ids, inputs.guidance, logits)
    spec, in_torch = model.spec, TorchBackend(model)
    latents = in_torch.run(contract.ENCODER, {contract.IMAGE: inputs.images})[contract.LATENT]
    quantized = in_torch.run(spec.tokenizer.quantizer, {contract.LATENT: latents})
    if trajectory is None:
        tokens = quantized[contract.TOKENS]
    codes = spec.tokenizer.codes_from_tokens(tokens, spec.vocabularies)
    return Reference(
        images=inputs.images,
        latents=latents,
        codes=quantized[contract.CODES],
        code_tokens=quantized[contract.TOKENS],
        tokens=tokens,
        decoded=in_torch.run(contract.DECODER, {contract.CODES: codes})[contract.IMAGE],
        trajectory=trajectory,
    )


def _logits(
    transformer: Transformer, classes: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> tuple[Array, ...]:
    """Teacher-forced logits of conditional rows, then of unconditional ones."""
    spec = transformer.spec
    rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
    flat = tokens.reshape(len(tokens), spec.positions, -1)
    forced = torch.from_numpy(np.concatenate([flat, flat]))
    with torch.no_grad():
        logits = transformer(torch.from_numpy(rows), forced)
    return tuple(part.view(len(rows), *spec.grid, -1).numpy() for part in logits)


def _images(size: tuple[int, ...], count: int) -> npt.NDArray[np.float32]:
    """Fixed smooth noise in [-1, 1]: blocks of 4 pixels a side, and finer noise on top."""
    fine = uniforms(0, np.arange(count, dtype=np.uint64), 3 * math.prod(size))
    fine = fine.reshape(count, 3, *size)
    coarse = fine[(slice(None), slice(None), *(slice(None, None, 4),) * len(size))]
    for axis, side in enumerate(size, start=2):
        coarse = coarse.repeat(4, axis=axis).take(range(side), axis=axis)
    return (1.6 * coarse + 0.4 * fine - 1).astype(np.float32)
