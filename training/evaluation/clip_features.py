"""I3D as a feature network of clips, whose Frechet distance is FVD (arXiv 1812.01717).

Frames become its input as SEED-Voken's metrics/fvd.py has it: resized to 224 x 224, bilinear with
align_corners=False and no antialias, whatever their shape, then 2 x / 255 - 1. VideoGPT's own
differs: it crops, and its range is [-0.5, 0.5]. Which clips are taken, how they are cropped and how
floats became 8 bits is the caller's.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from m2kit.errors import CheckpointError, InputError, Unavailable
from m2kit.hashes import sha256_of_file
from m2kit.training.evaluation.input_rule import InputRule, ranged
from m2kit.training.evaluation.picture_features import Features, checked
from m2kit.training.models import i3d
from m2kit.training.models.weights_file import (
    WeightsFile,
    copy_weights,
    missing_line,
    weights_path,
)

I3D = "i3d"
RULE = ranged((i3d.SIDE, i3d.SIDE), "bilinear, no antialias", -1, 1)
I3D_FILE = WeightsFile(
    "i3d_pretrained_400.pt",
    "VideoGPT's port of I3D, the state dict that load_i3d_pretrained of "
    "https://github.com/wilson1yan/VideoGPT fetches from Google Drive, id "
    "1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT",
    option="--feature-weights",
)


@dataclass(frozen=True, slots=True)
class ClipNetwork:
    """I3D, or another network of its logits, as a FeatureNetwork of clips.

    Attributes:
        sha256: Of the file with its weights, in hex.
        module: From (1, 3, T, *rule.size), as `rule` scales them, to (1, 400).
        rule: What is done with a frame first.
    """

    sha256: str
    module: nn.Module
    rule: InputRule = RULE

    @property
    def name(self) -> str:
        """Of the network."""
        return I3D

    @property
    def dimensions(self) -> int:
        """Features of a clip."""
        return i3d.CLASSES

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Features of clips, each computed by itself, so that none depends on those beside it.

        Args:
            images: (B, 3, T, H, W) float32 in [0, 1], T at least 9.

        Raises:
            InputError: Clips of another shape, type or range.
            Unavailable: Features that are not finite.
        """
        if images.ndim != 5 or images.shape[1] != 3 or not len(images):
            raise InputError(f"expected (B, 3, T, H, W) clips, found {tuple(images.shape)}")
        if images.shape[2] < i3d.FRAMES:
            raise InputError(_too_short(images.shape[2]))
        features = [self.module(self.rule(clip[None])) for clip in images]
        return checked(self.name, {"pooled": torch.cat(features)})


def i3d_network(
    weights: Path | None = None, frames: int = i3d.FRAMES, rule: InputRule | None = None
) -> ClipNetwork:
    """I3D with its weights.

    Args:
        weights: The file; None looks where torch.hub keeps its own.
        frames: Of the clips that it is to see.
        rule: In place of its own.

    Raises:
        Unavailable: The file is missing; the message says which, from where, where to put it. Or
            the clips are too short.
        CheckpointError: It cannot be read, holds other weights, or is a TorchScript program.
    """
    if frames < i3d.FRAMES:
        raise Unavailable(_too_short(frames))
    path = weights_path(weights, I3D_FILE)
    if not path.is_file():
        raise Unavailable(
            f"{missing_line(path, I3D_FILE)}; put it there, or name it", option=I3D_FILE.option
        )
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, and reading one may run what is in it; expected "
            f"weights alone: {I3D_FILE.source}"
        )
    network = i3d.I3D()
    names = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    copy_weights(network, path, I3D_FILE, {n: n for n in names})
    return ClipNetwork(sha256_of_file(path), network, rule or RULE)


def _too_short(frames: int) -> str:
    return f"I3D takes clips of {i3d.FRAMES} frames or more, found {frames}; take longer ones"


def _is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote the file, by the record that torch.load knows it by."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False  # what it is instead, the reader of checkpoints says
