"""What looks at pictures for evaluation: the feature network and that of LPIPS, where they are at
hand, and why not where they are not; and how metrics that cannot be computed are told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2kit.errors import InputError, Unavailable
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.runtime.images import Rounding, uint8_from_images
from m2kit.training.evaluation.clip_features import I3D
from m2kit.training.evaluation.features import (
    INCEPTION_PYTORCH_FID,
    INCEPTION_TF,
    NAMES,
    FeatureNetwork,
    feature_network,
)
from m2kit.training.evaluation.moments import Gaussian, check_enough, frechet_distance
from m2kit.training.evaluation.protocol import Named, Network
from m2kit.training.evaluation.scores import lpips_network
from m2kit.training.evaluation.tally import Tally
from m2kit.training.models.perceptual import HEADS, VGG, PerceptualNetwork
from m2kit.training.models.weights_file import weights_path

ORIGINALS, MADE = "originals", "made"
RFID, RFVD = "rfid", "rfvd"
SPATIAL = "spatial."  # begins the name of moments of spatial features
Images = npt.NDArray[np.float32]
Measures = Mapping[str, Callable[[], float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """The model, as a protocol tells it.

    Attributes:
        name: A file's or folder's name.
        sha256: Of a checkpoint; of a folder, of its files' hashes.
        weights: "ema", "live" or "stored", of its tokenizer.
        precision: What it computes in.
        backend: What computes.
    """

    name: str
    sha256: str
    weights: str
    precision: str
    backend: str


@dataclass(frozen=True, slots=True)
class Looking:
    """What looks at pictures.

    Attributes:
        network: A feature network's name or an ONNX file; None is the protocol's.
        network_weights: Its file; None looks where it usually is.
        vgg: VGG-16's weights for LPIPS; None likewise.
        heads: LPIPS's linear heads; None likewise.
    """

    network: str | None = None
    network_weights: Path | None = None
    vgg: Path | None = None
    heads: Path | None = None


def network_of(
    named: Named,
    name: str | None,
    weights: Path | None,
    metrics: Collection[str],
    frames: int | None = None,
) -> FeatureNetwork | Unavailable:
    """The feature network, or why there is none.

    Args:
        named: The protocol, which has one of its own.
        name: Another one, as `feature_network` takes it.
        weights: Its file; None looks where it usually is.
        metrics: Those that need it; with none of them it is not looked for.
        frames: Of the clips that it is to see; None is to see pictures.

    Raises:
        CheckpointError: Its file holds something else.
        InputError: There is no such network, or the file is none.
    """
    if not metrics:
        return Unavailable("no metric of a feature network was asked for")
    chosen = name or named.network
    try:
        network = feature_network(chosen, weights=weights, frames=frames)
        if named.resize is not None and chosen in NAMES:
            rule = replace(network.rule, resize=named.resize)
            network = feature_network(chosen, weights=weights, rule=rule)
        return network
    except Unavailable as error:
        return error


def network_record(network: FeatureNetwork | Unavailable) -> Network | None:
    """What a protocol tells of it."""
    if isinstance(network, Unavailable):
        return None
    rule = network.rule
    values = f"mean {_listed(rule.mean)}, std {_listed(rule.std)}, of 0..255"
    return Network(network.name, network.sha256, tuple(rule.size), rule.resize, values)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def perceptual_of(
    vgg: Path | None, heads: Path | None, *, wanted: bool
) -> tuple[PerceptualNetwork, Network] | Unavailable:
    """LPIPS on VGG-16 and what a protocol tells of it, or why there is none.

    Raises:
        CheckpointError: A file holds something else.
    """
    if not wanted:
        return Unavailable("LPIPS was not asked for")
    try:
        network = lpips_network(vgg, heads)
    except Unavailable as error:
        return error
    paths = weights_path(vgg, VGG), weights_path(heads, HEADS)
    sha256 = sha256_of_json([sha256_of_file(path) for path in paths])
    return network, Network("lpips-vgg", sha256, values="-1..1")


def add_features(
    tally: Tally, network: FeatureNetwork, of: str, images: Tensor, kept: list[bool]
) -> Tensor | None:
    """Add what the network sees in pictures (B, 3, H, W) float32 in [0, 1], or in clips.

    Args:
        tally: Where to.
        network: What sees it.
        of: ORIGINALS or MADE.
        images: The pictures.
        kept: Of which of them the features are held.

    Returns:
        The network's logits (B, C), if it has any.
    """
    found = network(images)
    tally.add_features(of, found.pooled, kept)
    if found.spatial is not None:
        tally.add_features(SPATIAL + of, found.spatial, [False] * len(kept))
    return found.logits


def seen_pixels(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels (B, *size, 3) uint8 as (B, 3, *size) float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).movedim(-1, 1)


def seen_images(images: Images, rounding: Rounding, features_of: str) -> Tensor:
    """What a feature network is shown of images (B, 3, *size) float32 in [-1, 1]: as they are, or
    as a file of 8 bits a colour would have them; float32 in [0, 1]."""
    if features_of != "float":
        return seen_pixels(uint8_from_images(images, rounding))
    return torch.from_numpy(np.clip((images + 1) / 2, 0, 1).astype(np.float32))


def distances(
    tally: Tally,
    network: FeatureNetwork | Unavailable,
    fid: str,
    reference: Gaussian | None = None,
) -> Measures:
    """The Frechet distance of what was made from originals: under its own name of whatever
    features, under `fid` of those that published numbers of this name are of."""

    def distance(network: FeatureNetwork | Unavailable) -> float:
        if isinstance(network, Unavailable):
            raise network
        real = reference or tally.moments_of(ORIGINALS)
        return frechet_distance(real, tally.moments_of(MADE))

    return {
        fid: partial(distance, of_published(network, fid)),
        "frechet_distance": partial(distance, network),
    }


def of_published(network: FeatureNetwork | Unavailable, fid: str) -> FeatureNetwork | Unavailable:
    """The network, where it is one of those that published numbers called `fid` are of."""
    names = (I3D,) if fid == RFVD else (INCEPTION_PYTORCH_FID, INCEPTION_TF)
    if isinstance(network, Unavailable) or network.name in names:
        return network
    theirs = "I3D" if fid == RFVD else "Inception"
    return Unavailable(
        f"{fid} is of {theirs}'s features, these are of {network.name}: see frechet_distance"
    )


def of_enough(network: FeatureNetwork | Unavailable, count: int) -> FeatureNetwork | Unavailable:
    """The network, where so many pictures are enough for a Frechet distance of its features."""
    try:
        if not isinstance(network, Unavailable):
            check_enough(count, network.dimensions)
    except Unavailable as error:
        return error
    return network


def giving(
    network: FeatureNetwork | Unavailable, part: Literal["spatial", "logits"]
) -> FeatureNetwork | Unavailable:
    """The network, where it gives this part of Features, too."""
    if isinstance(network, Unavailable):
        return network
    found = network(torch.full((1, 3, *network.rule.size), 0.5))
    told = {"spatial": "spatial features", "logits": "classes"}[part]
    missing = Unavailable(f"the feature network {network.name} gives no {told}")
    return missing if getattr(found, part) is None else network


def check_asked(asked: Sequence[str], needs: Mapping[str, object]) -> None:
    """Refuse, before hours are spent, a metric whose need is Unavailable.

    Args:
        asked: Names that must be computed.
        needs: Name -> what it cannot do without.

    Raises:
        InputError: One of those cannot be.
    """
    for name in asked:
        missing = needs.get(name)
        if isinstance(missing, Unavailable):
            raise uncomputed(name, missing)


def values_of(
    measures: Measures, asked: Sequence[str]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Metrics, None where one cannot be computed, and why.

    Args:
        measures: Name -> what computes it.
        asked: Names that must be computed; empty is whatever can be, of all.

    Raises:
        InputError: One of those cannot be.
    """
    values: dict[str, float | None] = {}
    reasons = {}
    for name in asked or measures:
        try:
            value = float(measures[name]())
            if not np.isfinite(value):
                raise Unavailable("it is no finite number")
            values[name] = value
        except Unavailable as error:
            if asked:
                raise uncomputed(name, error) from error
            values[name], reasons[name] = None, " ".join(str(error).split())
    return values, reasons


def uncomputed(name: str, error: Unavailable) -> InputError:
    """What is said of a metric that was asked for by name."""
    return InputError(
        f"{name} cannot be computed: {error}",
        option=f"--metrics, {error.option}" if error.option else "--metrics",
    )
