"""Features of clips, whose Frechet distance is FVD (arXiv 1812.01717): the 400 logits of I3D.

Frames become its input as SEED-Voken's metrics/fvd.py has it: resized to 224 x 224, bilinear with
align_corners=False and no antialias, whatever their shape, then 2 x / 255 - 1. VideoGPT's own
differs: it crops, and its range is [-0.5, 0.5]. Which clips are taken, how they are cropped and how
floats became 8 bits is the caller's.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from m2kit.errors import CheckpointError, InputError, Unavailable
from m2kit.training.evaluation.input_rule import ranged
from m2kit.training.evaluation.moments import Moments
from m2kit.training.models.i3d import CLASSES, FRAMES, I3D, SIDE
from m2kit.training.models.weights_file import (
    WeightsFile,
    copy_weights,
    missing_line,
    weights_path,
)

RULE = ranged((SIDE, SIDE), "bilinear, no antialias", -1, 1)
I3D_FILE = WeightsFile(
    "i3d_pretrained_400.pt",
    "VideoGPT's port of I3D, the state dict that load_i3d_pretrained of "
    "https://github.com/wilson1yan/VideoGPT fetches from Google Drive, id "
    "1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT",
    option="",
)
ClipNetwork = Callable[[Tensor], Tensor]


def i3d_network(weights: Path | None = None) -> I3D:
    """I3D with its weights.

    Args:
        weights: The file; None looks where torch.hub keeps its own.

    Raises:
        Unavailable: It is missing; the message says which, from where, where to put it.
        CheckpointError: It cannot be read, holds other weights, or is a TorchScript program.
    """
    path = weights_path(weights, I3D_FILE)
    if not path.is_file():
        raise Unavailable(f"{missing_line(path, I3D_FILE)}; put it there, or name it")
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, and reading one may run what is in it; expected "
            f"weights alone: {I3D_FILE.source}"
        )
    network = I3D()
    names = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    copy_weights(network, path, I3D_FILE, {n: n for n in names})
    return network


@torch.inference_mode()
def clip_features(network: ClipNetwork, clips: Tensor) -> Tensor:
    """Features of clips, each computed by itself, so that none depends on those beside it.

    Args:
        network: Of `i3d_network`, or another from (1, 3, T, 224, 224) float32 in [-1, 1] to
            (1, 400).
        clips: (B, 3, T, H, W) uint8, T at least 9.

    Returns:
        (B, 400) float32.

    Raises:
        InputError: Clips of another shape or type.
        Unavailable: Features that are not finite.
    """
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.dtype != torch.uint8 or not clips.numel():
        raise InputError(
            f"expected (B, 3, T, H, W) uint8 clips, found {tuple(clips.shape)} {clips.dtype}"
        )
    if clips.shape[2] < FRAMES:
        raise InputError(
            f"I3D takes clips of {FRAMES} frames or more, found {clips.shape[2]}; take longer ones"
        )
    features = torch.cat([network(_input_of(clip)) for clip in clips])
    if not features.isfinite().all():
        raise Unavailable("I3D's features are not finite; look at its weights")
    return features


def clip_moments(network: ClipNetwork, batches: Iterable[Tensor]) -> Moments:
    """Sums over the features of clips, for `frechet_distance`; those of shards merge.

    Args:
        network: As for `clip_features`.
        batches: Of clips (B, 3, T, H, W) uint8.

    Raises:
        InputError: As for `clip_features`.
        Unavailable: As for `clip_features`.
    """
    moments = Moments(CLASSES)
    for clips in batches:
        moments.add(clip_features(network, clips))
    return moments


def _input_of(clip: Tensor) -> Tensor:
    """(3, T, H, W) uint8 -> (1, 3, T, 224, 224) float32 in [-1, 1]."""
    frames = RULE(clip.transpose(0, 1) / 255)
    return frames.transpose(0, 1)[None]


def _is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote the file, by the record that torch.load knows it by."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False  # what it is instead, the reader of checkpoints says
