"""The reference that travels with every bundle and engine (reference.npz): inputs, and what PyTorch
computed from them at export, so that a device without torch can repeat the comparison.

It is made once: images and their latents; tokens of a guided, greedy trajectory that the decoding
loop took through the cached steps; and what PyTorch, teacher-forced with those tokens in one pass,
gives as logits and as image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.config import ModelSpec
from m2kit.contract import REFERENCE_FILE
from m2kit.errors import FolderError, InputError
from m2kit.families.sizes import fits
from m2kit.npz_file import DamagedArchive, read_npz
from m2kit.tokens import check_tokens

Array = npt.NDArray[Any]
_MOST_IMAGES = 64
_NAMES = ("images", "latents", "codes", "code_tokens", "tokens", "decoded")  # arrays of every one


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A guided, greedy generation, scored by PyTorch.

    Attributes:
        class_ids: (B) int64.
        guidance: (K) float64, the scale of each sub-token.
        logits: K arrays (2B, h, w, V_k) float32: conditional rows, then unconditional ones.
    """

    class_ids: npt.NDArray[np.int64]
    guidance: npt.NDArray[np.float64]
    logits: tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model must compute.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1].
        latents: (B, Z, h, w) float32 of these images.
        codes: (B, Z, h, w) float32: what the quantizer makes of these latents.
        code_tokens: (B, h, w, K) int64: likewise.
        tokens: (B, h, w, K) int64 of the trajectory; of a tokenizer alone its code tokens.
        decoded: (B, 3, H, W) float32, the images of `tokens`.
        trajectory: None for a tokenizer alone.
    """

    images: npt.NDArray[np.float32]
    latents: npt.NDArray[np.float32]
    codes: npt.NDArray[np.float32]
    code_tokens: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    decoded: npt.NDArray[np.float32]
    trajectory: Trajectory | None

    def write(self, folder: Path) -> None:
        """Write the reference into a bundle."""
        arrays = {name: getattr(self, name) for name in _NAMES}
        if self.trajectory is not None:
            arrays["class_ids"] = self.trajectory.class_ids
            arrays["guidance"] = self.trajectory.guidance
            arrays |= {f"logits_{k}": part for k, part in enumerate(self.trajectory.logits)}
        np.savez(folder / REFERENCE_FILE, **arrays)


def read_reference(folder: Path, spec: ModelSpec) -> Reference:
    """The reference of a bundle or engine; never unpickled, every array checked against the spec.

    Raises:
        FolderError: It cannot be read, or is not one of this spec.
    """
    path = folder / REFERENCE_FILE
    try:
        with path.open("rb") as file:
            return _reference(read_npz(file), spec)
    except (DamagedArchive, OSError) as error:
        raise FolderError(f"{path} is not a readable reference; export the model again") from error
    except (_Wrong, InputError) as error:
        raise FolderError(f"{path}: {error}; export the model again") from error


class _Wrong(Exception):
    """An array that is not the reference's."""


def _reference(arrays: dict[str, Array], spec: ModelSpec) -> Reference:
    transformer, tokenizer, count = spec.transformer, spec.tokenizer, spec.sub_tokens
    names = list(_NAMES)
    if transformer:
        names += ["class_ids", "guidance", *(f"logits_{k}" for k in range(count))]
    if set(arrays) != set(names):
        raise _Wrong(f"expected the arrays {', '.join(names)}, found {', '.join(sorted(arrays))}")
    images = arrays["images"]
    if images.ndim != 2 + len(tokenizer.axes) or not 1 <= len(images) <= _MOST_IMAGES:
        raise _Wrong(f"images: expected 1 to {_MOST_IMAGES}, found the shape {images.shape}")
    batch, size = len(images), tuple(map(int, images.shape[2:]))
    if not fits(tokenizer, size):
        raise _Wrong(f"images: the model takes none of {list(size)}")
    grid = spec.grid_of_size(size)
    tokenizer.check_grid(grid)
    if transformer and grid != transformer.grid:
        raise _Wrong(f"images: expected a latent grid of {transformer.grid}, found {grid}")
    latent, token = (batch, tokenizer.code_channels, *grid), (batch, *grid, count)
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "images": ((batch, 3, *size), np.float32),
        "latents": (latent, np.float32),
        "codes": (latent, np.float32),
        "code_tokens": (token, np.int64),
        "tokens": (token, np.int64),
        "decoded": ((batch, 3, *size), np.float32),
        "class_ids": ((batch,), np.int64),
        "guidance": ((count,), np.float64),
    }
    for k, ids in enumerate(spec.vocabularies):
        shapes[f"logits_{k}"] = ((2 * batch, *grid, ids), np.float32)
    for name in names:
        _check(name, arrays[name], *shapes[name])
    axes = tuple(map(str.lower, tokenizer.axes))
    for name in ("tokens", "code_tokens"):
        check_tokens(arrays[name], spec.vocabularies, axes)
    codes = tokenizer.codes_from_tokens(arrays["code_tokens"], spec.vocabularies)
    tokens = tokenizer.tokens_from_codes(arrays["latents"], spec.vocabularies)
    if not np.array_equal(codes, arrays["codes"]) or (tokens != arrays["code_tokens"]).any():
        raise _Wrong("latents, codes and code_tokens contradict one another")
    if np.abs(images).max() > 1.0001:
        raise _Wrong("images: expected values in [-1, 1]")
    return Reference(**{n: arrays[n] for n in _NAMES}, trajectory=_trajectory(arrays, spec))


def _trajectory(arrays: dict[str, Array], spec: ModelSpec) -> Trajectory | None:
    if spec.transformer is None:
        return None
    classes, guidance = arrays["class_ids"], arrays["guidance"]
    if classes.min() < 0 or classes.max() >= spec.transformer.classes:
        raise _Wrong(f"class_ids: expected 0..{spec.transformer.classes - 1}")
    if guidance.min() < 0 or guidance.max() > 1e4:
        raise _Wrong("guidance: expected scales in 0..10000")
    logits = tuple(arrays[f"logits_{k}"] for k in range(spec.sub_tokens))
    return Trajectory(classes, guidance, logits)


def _check(name: str, array: Array, shape: tuple[int, ...], dtype: type) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise _Wrong(
            f"{name}: expected {np.dtype(dtype).name} of shape {shape}, found {array.dtype} of "
            f"shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise _Wrong(f"{name}: expected finite numbers")
