"""How generated pictures compare with real ones: FID, sFID, KID, the Inception score, precision and
recall, the share that shows its class, and the share that nearly copies a training picture.

Real pictures are measured first, then generated ones, both in lots; nothing of them is held but
sums and the features of at most 10,000 each. All are of 8 bits a colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from m2kit.errors import InputError, Unavailable
from m2kit.hashes import sha256_of_file
from m2kit.inputs import open_input
from m2kit.progress import Begin, silent
from m2kit.records import to_json
from m2kit.runtime.npz_rows import RowArchive
from m2kit.runtime.sample_files import PIXELS, Samples, open_samples
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.evaluation import scores
from m2kit.training.evaluation.inception_score import (
    OF_A_PART,
    add_classes,
    inception_score,
    part_of_each,
)
from m2kit.training.evaluation.judging import Judge, judge_of, small_training_pictures
from m2kit.training.evaluation.looking import (
    MADE,
    ORIGINALS,
    SPATIAL,
    Looking,
    Measured,
    Measures,
    add_features,
    check_asked,
    distances,
    giving,
    network_of,
    network_record,
    of_enough,
    of_published,
    seen_pixels,
    values_of,
)
from m2kit.training.evaluation.made import Made, SamplesRead
from m2kit.training.evaluation.measures import near_copies, small
from m2kit.training.evaluation.moments import Published, frechet_distance, of_published_npz
from m2kit.training.evaluation.originals import LOT, PICTURES_RESIZE, PictureOriginals, Pixels
from m2kit.training.evaluation.protocol import (
    HELD_OUT,
    PROTOCOLS,
    Protocol,
    ProtocolName,
    Result,
    Split,
    printable,
)
from m2kit.training.evaluation.tally import Kept, Tally, is_kept, measured

METRICS = (
    *("fid", "frechet_distance", "sfid", "kid", "inception_score", "precision", "recall"),
    *("class_accuracy", "near_copies"),
)
OF_FEATURES = set(METRICS[:7])
_OF_ROWS = {"kid", "precision", "recall"}
_STATISTICS_ALONE = "the reference has statistics alone, and no pictures"
_AT_ONCE = 32  # pictures that a network looks at
_SMALL, _SHOWN = "small", "shown"
SHOWN = 40  # pictures for the page, evenly spread


class Generation:
    """What is measured, and how.

    Args:
        model: What has drawn the pictures.
        made: The pictures.
        data: The data set that they are compared with.
        split: Which half of it.
        size: Side of its squares; None is that of the pictures that were made.
        reference: ADM's .npz of statistics, and maybe of pictures, in place of those of the data.
        name: Of the protocol.
        looking: The networks.
        classifier: An ONNX file that judges classes; None is the data set's judge.
        metrics: Those that must be computed, of METRICS; empty is whatever can be, of all.

    Attributes:
        shown: Some of the pictures (n, H, W, 3), evenly spread, once all are measured.
        training_sha256: Of small training pictures that are none of those of `split`, once copies
            were looked for among them.

    Raises:
        InputError: No such feature network, data without pictures, or a file that is none.
        CheckpointError: The file of a network holds something else.
    """

    def __init__(
        self,
        model: Measured,
        made: Made,
        data: DataSet,
        *,
        split: Split = "all",
        size: int | None = None,
        reference: Path | None = None,
        name: ProtocolName = "adm",
        looking: Looking,
        classifier: Path | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        self.model, self.made, self.data, self.name = model, made, data, name
        self.collection = data.loader()
        height, width = (size, size) if size else made.told.size
        self.cut = Cut((height, width))
        self.originals = PictureOriginals(data, self.collection, split, self.cut)
        self.asked = tuple(metrics)
        self.wanted = set(self.asked or METRICS)
        self.network = network_of(
            PROTOCOLS[name], looking.network, looking.network_weights, self.wanted & OF_FEATURES
        )
        self.shown: Pixels = np.zeros((0, *made.told.size, 3), np.uint8)
        self.training_sha256: str | None = None
        self._parts = part_of_each(made.told.count, OF_A_PART)
        self.judge: Judge | Unavailable = Unavailable("class accuracy was not asked for")
        if "class_accuracy" in self.wanted:
            self.judge = judge_of(data, self.collection, self.cut, classifier)
        self._use_reference(reference)

    def _use_reference(self, path: Path | None) -> None:
        """What generated pictures are compared with."""
        self.published: tuple[Published, Published | None] | None = None
        self.reference, self.reference_sha256 = "pictures of the data", None
        real: Made | None = None
        if path is not None:
            self.published = of_published_npz(path)
            known = len(self.published[0].mean)
            if not isinstance(self.network, Unavailable) and known != self.network.dimensions:
                raise InputError(
                    f"{path} has statistics of {known} features, and {self.network.name} gives "
                    f"{self.network.dimensions}; name the network that they are of",
                    option="--reference, --network",
                )
            self.reference_sha256 = sha256_of_file(path)
            self.reference = f"the statistics of {printable(path.name)}"
            samples = pictures_of_reference(path)
            if samples is not None:
                real = SamplesRead(samples, "truncate", self.reference_sha256)
        self._real, sizes = real, self.originals.lots
        if path is not None:
            count = 0 if real is None else real.told.count
            sizes = [min(LOT, count - start) for start in range(0, count, LOT)]
        elif isinstance(self.network, Unavailable):
            sizes = []  # nobody looks at them
        self._real_lots = sizes

    def result(self, folder: Path | None = None, begin: Begin = silent) -> Result:
        """Measure it.

        Args:
            folder: Where sums are kept, so that the same call goes on where it was killed.
            begin: Shows how far it is.

        Raises:
            InputError: A metric that must be computed and cannot be.
            FolderError: The folder cannot be written, or holds another measurement.
        """
        needs = dict.fromkeys(OF_FEATURES, self.network)
        least = self.made.told.count
        if self.published is None:
            least = min(least, len(self.originals))
        elif not self._real_lots:
            needs |= dict.fromkeys(_OF_ROWS, Unavailable(_STATISTICS_ALONE))
        needs["frechet_distance"] = of_enough(self.network, least)
        needs["fid"] = of_enough(of_published(self.network, "fid"), least)
        if "sfid" in self.asked:
            needs["sfid"] = giving(self.network, "spatial")
        if "inception_score" in self.asked:
            needs["inception_score"] = giving(self.network, "logits")
        check_asked(self.asked, {**needs, "class_accuracy": self.judge})
        about = to_json(self.protocol(Tally())) | {
            "pictures": [self.originals.stamp(), self.made.told.digest],
            "metrics": sorted(self.wanted),
        }
        count = self.made.told.count
        sizes = [*self._real_lots, *(min(LOT, count - start) for start in range(0, count, LOT))]
        advance = begin("measuring", sum(sizes))
        tally = measured(Kept(folder, about, Tally), sizes, self._of_lot, advance)
        self.shown = np.concatenate(tally.rows[_SHOWN])
        values, reasons = values_of(self._measures(tally), self.asked)
        return Result(self.protocol(tally), values, reasons, tally.images)

    def protocol(self, tally: Tally) -> Protocol:
        """How a tally was made, and of what."""
        told, model, real = self.made.told, self.model, len(self._real_lots)
        classes = range(len(self.collection.classes))
        return Protocol(
            name=self.name,
            task="generation",
            data=self.originals.title,
            data_sha256=tally.sha256(slice(real)) if real else self.originals.digest,
            split=self.originals.split,
            images=tally.images,
            unread=tally.unread,
            crop="centre",
            resize=PICTURES_RESIZE,
            size=self.cut.size,
            uint8=told.uint8,
            features_of="uint8",
            weights=model.weights,
            network=network_record(self.network),
            perceptual=None,
            classifier=None if isinstance(self.judge, Unavailable) else self.judge.words,
            reference=self.reference,
            reference_sha256=self.reference_sha256,
            per_class=told.per_class,
            seed=told.seed,
            model=model.name,
            model_sha256=model.sha256,
            precision=model.precision,
            backend=model.backend,
            sampling=told.sampling,
            training_sha256=self.training_sha256,
            classes=None if told.classes == tuple(classes) else told.classes,
        )

    def _of_lot(self, lot: int) -> Tally:
        real = len(self._real_lots)
        return self._of_real(lot) if lot < real else self._of_made(lot - real)

    def _of_real(self, lot: int) -> Tally:
        tally, digest, first = Tally(), hashlib.sha256(), lot * LOT
        batches = self._real.lot(lot) if self._real else self._batches(lot, tally)
        for pixels, _ in batches:
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
            self._look(tally, ORIGINALS, pixels, first, sum(self._real_lots))
            first += len(pixels)
        tally.digests = [digest.digest()]
        return tally

    def _batches(self, lot: int, tally: Tally) -> list[tuple[Pixels, None]]:
        """A lot of the data."""
        read = [pixels for _, pixels in self.originals.read(self.originals.of_lot(lot))]
        found = [pixels for pixels in read if pixels is not None]
        tally.unread = len(read) - len(found)
        return [
            (np.stack(found[start : start + _AT_ONCE]), None)
            for start in range(0, len(found), _AT_ONCE)
        ]

    def _of_made(self, lot: int) -> Tally:
        tally, digest, first = Tally(), hashlib.sha256(), lot * LOT
        total = self.made.told.count
        for pixels, labels in self.made.lot(lot):
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
            self._look(tally, MADE, pixels, first, total)
            classes = len(self.collection.classes)
            known = labels is not None and labels.min() >= 0 and labels.max() < classes
            if labels is not None and known and not isinstance(self.judge, Unavailable):
                right = labels[self.judge.classes(pixels) == labels]
                tally.add("right", np.bincount(right, minlength=classes))
                tally.add("of_class", np.bincount(labels, minlength=classes))
            shown = [is_kept(i, total, SHOWN) for i in range(first, first + len(pixels))]
            tally.add_rows(_SHOWN, pixels, shown)
            if "near_copies" in self.wanted:
                tally.add_rows(_SMALL, small(pixels), _kept(first, len(pixels), total))
            first += len(pixels)
            tally.images += len(pixels)
        tally.digests = [digest.digest()]
        return tally

    def _look(self, tally: Tally, of: str, pixels: Pixels, first: int, total: int) -> None:
        """Add what the network sees in pictures `first` and so on of `total`."""
        if isinstance(self.network, Unavailable):
            return
        kept = _kept(first, len(pixels), total) if self.wanted & _OF_ROWS else [False] * len(pixels)
        logits = add_features(tally, self.network, of, seen_pixels(pixels), kept)
        if of == MADE and logits is not None and "inception_score" in self.wanted:
            add_classes(tally, logits, self._parts[first : first + len(pixels)])

    def _measures(self, tally: Tally) -> Measures:
        """What computes each metric."""

        def features() -> tuple[torch.Tensor, torch.Tensor]:
            if isinstance(self.network, Unavailable):
                raise self.network
            if self.published is not None and not self._real_lots:
                raise Unavailable(_STATISTICS_ALONE)
            return tally.features(ORIGINALS), tally.features(MADE)

        @cache  # of distances between every two
        def shares() -> scores.PrecisionRecall:
            return scores.precision_recall(*features())

        def sfid() -> float:
            if isinstance(self.network, Unavailable):
                raise self.network
            made = tally.moments_of(SPATIAL + MADE)
            if self.published is None:
                return frechet_distance(tally.moments_of(SPATIAL + ORIGINALS), made)
            if self.published[1] is None:
                raise Unavailable("the reference has no statistics of spatial features")
            known = len(self.published[1].mean)
            if known != made.dimensions:
                raise Unavailable(
                    f"the reference has {known} spatial features, the network {made.dimensions}"
                )
            return frechet_distance(self.published[1], made)

        def accuracy() -> float:
            if isinstance(self.judge, Unavailable):
                raise self.judge
            if tally.sums.get("of_class", np.zeros(1)).sum() != tally.images:
                raise Unavailable(
                    "the classes of the images are not known, or not those of the data"
                )
            drawn = tally.sums["of_class"] > 0
            return float((tally.sums["right"][drawn] / tally.sums["of_class"][drawn]).mean())

        def copies() -> float:
            made = np.concatenate(tally.rows[_SMALL])
            known = small_training_pictures(self.data, self.collection, self.cut)
            if known.shape[1:] != made.shape[1:]:
                raise Unavailable("training pictures are of another size than the images")
            if not self._real_lots or self._real or self.originals.split == HELD_OUT:
                self.training_sha256 = hashlib.sha256(known.tobytes()).hexdigest()
            return near_copies(made, known)

        def score() -> float:
            if isinstance(self.network, Unavailable):
                raise self.network
            return inception_score(tally)

        reference = None if self.published is None else self.published[0]
        measures: dict[str, Callable[[], float]] = {
            **distances(tally, self.network, "fid", reference),
            "sfid": sfid,
            "kid": lambda: scores.kid(*features(), seed=0),
            "inception_score": score,
            "precision": lambda: shares().precision,
            "recall": lambda: shares().recall,
            "class_accuracy": accuracy,
            "near_copies": copies,
        }
        return {name: measures[name] for name in METRICS if name in self.wanted}


def _kept(first: int, count: int, total: int) -> list[bool]:
    return [is_kept(index, total) for index in range(first, first + count)]


def pictures_of_reference(path: Path) -> Samples | None:
    """The pictures in a file of statistics, if there are any.

    Raises:
        InputError: They are not those of ADM's form.
    """
    with open_input(path, "set of images") as file:
        pictured = PIXELS in RowArchive(file).names
    return open_samples(path) if pictured else None
