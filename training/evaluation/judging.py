"""By what generated pictures are judged: a classifier of their classes, and small pictures of what
they may be copies of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m2kit.errors import InputError, Unavailable
from m2kit.runtime.images import images_from_pixels
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.dataset import DataSet, Recogniser
from m2kit.training.datasets.pictures import Collection
from m2kit.training.evaluation.features import feature_network
from m2kit.training.evaluation.measures import small
from m2kit.training.evaluation.originals import PictureOriginals, Pixels
from m2kit.training.evaluation.protocol import TRAIN
from m2kit.training.evaluation.tally import MOST_ROWS, is_kept

_MOST_BYTES = 1 << 28  # of pictures that a judge is fitted to, as float32
_FLOAT_BYTES = 4


class Judge:
    """Takes pictures to their classes.

    Attributes:
        words: What it is, for a protocol.
    """

    def __init__(self, words: str, recognise: Recogniser) -> None:
        """A recogniser, and what it is."""
        self.words, self._recognise = words, recognise

    def classes(self, pixels: Pixels) -> npt.NDArray[np.int64]:
        """Of pictures (B, H, W, 3): (B) int64."""
        return self._recognise(images_from_pixels(pixels))


def judge_of(
    data: DataSet, collection: Collection, cut: Cut, classifier: Path | None
) -> Judge | Unavailable:
    """What judges the classes of generated pictures.

    Args:
        data: The data set, whose own judge it is by default.
        collection: Its pictures, to whose training half that is fitted.
        cut: Of these.
        classifier: An ONNX file in place of it, as a feature network is one; its logits, or else
            its first output, are of the data set's classes.

    Raises:
        InputError: The file is none, or tells other classes than the data set's.
    """
    if classifier is not None:
        try:
            network = feature_network(classifier)
        except Unavailable as error:
            return error

        def scores(images: torch.Tensor) -> torch.Tensor:
            found = network(images)
            return found.pooled if found.logits is None else found.logits

        def recognise(images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
            return scores(torch.from_numpy((images + 1) / 2)).argmax(1).numpy()

        told = scores(torch.full((1, 3, *network.rule.size), 0.5)).shape[1]
        if told != len(collection.classes):
            raise InputError(
                f"{classifier} tells {told} classes, and {data.name} has "
                f"{len(collection.classes)}; name a classifier of these",
                option="--classifier",
            )

        return Judge(f"{network.name}, sha256 {network.sha256}", recognise)
    if data.judge is None:
        return Unavailable(f"{data.name} has no judge of its classes; name a classifier")
    if not len(collection.train.labels):
        return Unavailable(f"{data.name} has no training pictures to fit its judge to")
    originals = PictureOriginals(data, collection, TRAIN, cut)
    most = max(1, _MOST_BYTES // (_FLOAT_BYTES * 3 * cut.size[0] * cut.size[1]))
    pixels, labels = _spread(originals, most)
    if not len(pixels):
        return Unavailable("no training picture can be read")
    if len(set(labels.tolist())) < 2:
        return Unavailable("one class alone needs no judge")
    sha256 = hashlib.sha256(pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    words = f"the data set's judge, fitted to {len(pixels)} training pictures, sha256 {sha256}"
    return Judge(words, data.judge(images_from_pixels(pixels), labels))


def _spread(originals: PictureOriginals, most: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """At most so many pictures, evenly spread, and their labels."""
    pixels, labels = [], []
    chosen = [index for index in range(len(originals)) if is_kept(index, len(originals), most)]
    for index in chosen:
        for _, picture in originals.read(range(index, index + 1)):
            if picture is not None:
                pixels.append(picture)
                labels.append(originals.labels[index])
    return (np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8)), np.array(labels)


def small_training_pictures(data: DataSet, collection: Collection, cut: Cut) -> Pixels:
    """At most 10,000 training pictures, evenly spread, to look for copies of: (n, h, w, 3), small.

    Args:
        data: The data set.
        collection: Its pictures.
        cut: Of these.

    Raises:
        Unavailable: There are none.
    """
    if not len(collection.train.labels):
        raise Unavailable("there are no training pictures")
    originals, found = PictureOriginals(data, collection, TRAIN, cut), []
    for index in range(len(originals)):
        if is_kept(index, len(originals), MOST_ROWS):
            for _, picture in originals.read(range(index, index + 1)):
                found += [] if picture is None else [small(picture[None])]
    if not found:
        raise Unavailable("no training picture can be read")
    return np.concatenate(found)
