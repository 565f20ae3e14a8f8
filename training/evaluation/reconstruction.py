"""How well a tokenizer gives pictures back: PSNR, SSIM and LPIPS of pairs, the Frechet distance and
KID of the two sets, and the use of the codebook, in one pass that holds no picture.

As the official evaluation has it: reconstructions against the same originals under the same crop;
PSNR and SSIM on 8 bits a colour, to which originals and reconstructions come by one rule from
[-1, 1]; means over pictures. Whole pictures are framed in mid-grey up to a multiple of the strides,
reconstructed one by one and cut back (the paper's Table 6).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m2kit.errors import InputError, Unavailable
from m2kit.progress import Begin, silent
from m2kit.records import to_json
from m2kit.runtime.codebook import CodebookCount, CodebookReport
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import (
    Rounding,
    cropped,
    images_from_pixels,
    padded,
    padded_size,
    uint8_from_images,
)
from m2kit.training.evaluation import scores
from m2kit.training.evaluation.looking import (
    MADE,
    ORIGINALS,
    Looking,
    Measured,
    Measures,
    add_features,
    check_asked,
    distances,
    network_of,
    network_record,
    of_enough,
    of_inception,
    perceptual_of,
    seen_images,
    seen_pixels,
    values_of,
)
from m2kit.training.evaluation.originals import RESIZE, Originals, Pixels
from m2kit.training.evaluation.protocol import (
    PROTOCOLS,
    Protocol,
    ProtocolName,
    Result,
)
from m2kit.training.evaluation.tally import Kept, Tally, is_kept, measured

METRICS = (
    *("psnr_db", "ssim", "lpips", "rfid", "frechet_distance", "kid"),
    *("codebook_usage", "perplexity"),
)
OF_FEATURES = {"rfid", "frechet_distance", "kid"}
_OF_CODEBOOK = {"codebook_usage", "perplexity"}
Images = npt.NDArray[np.float32]


_ANYWHERE = Looking()


class Reconstruction:
    """What is measured, and how.

    Args:
        engine: The model, opened.
        model: What it is.
        originals: The pictures.
        name: Of the protocol.
        uint8: How floats become 8 bits a colour; None is the protocol's.
        looking: The networks.
        metrics: Those that must be computed, of METRICS; empty is whatever can be, of all.
        batch: Images computed at once, at most.

    Attributes:
        codebook: Its use, once that is measured.

    Raises:
        InputError: There is no such feature network.
        CheckpointError: The file of a network holds something else.
    """

    def __init__(
        self,
        engine: Engine,
        model: Measured,
        originals: Originals,
        *,
        name: ProtocolName = "open-magvit2",
        uint8: Rounding | None = None,
        looking: Looking = _ANYWHERE,
        metrics: Sequence[str] = (),
        batch: int | None = None,
    ) -> None:
        self.engine, self.model, self.originals = engine, model, originals
        self.name: ProtocolName = name
        self.uint8: Rounding = uint8 or PROTOCOLS[name].uint8
        self.asked, self.batch = tuple(metrics), batch
        self.wanted = set(self.asked or METRICS)
        self.network = network_of(
            PROTOCOLS[name], looking.network, looking.network_weights, self.wanted & OF_FEATURES
        )
        self.perceptual = perceptual_of(looking.vgg, looking.heads, wanted="lpips" in self.wanted)
        self.codebook: CodebookReport | None = None

    def result(self, folder: Path | None = None, begin: Begin = silent) -> Result:
        """Measure it.

        Args:
            folder: Where sums are kept, so that the same call goes on where it was killed.
            begin: Shows how far it is.

        Raises:
            InputError: A metric that must be computed and cannot be, or no picture can be read.
            FolderError: The folder cannot be written, or holds another measurement.
        """
        needs = dict.fromkeys(OF_FEATURES, self.network)
        pictures = len(self.originals)
        needs["frechet_distance"] = of_enough(self.network, pictures)
        needs["rfid"] = of_enough(of_inception(self.network, "rfid"), pictures)
        check_asked(self.asked, {**needs, "lpips": self.perceptual})
        about = to_json(self.protocol(Tally())) | {
            "pictures": self.originals.stamp(),
            "metrics": sorted(self.wanted),
        }
        advance = begin("reconstructing", len(self.originals))
        kept = Kept(folder, about, self._empty)
        tally = measured(kept, self.originals.lots, self._of_lot, advance)
        if not tally.images:
            raise InputError(f"none of the {tally.unread} pictures can be read")
        self.codebook = tally.codebook.report() if tally.codebook else None
        values, reasons = values_of(self._measures(tally), self.asked)
        return Result(self.protocol(tally), values, reasons, tally.images)

    def protocol(self, tally: Tally) -> Protocol:
        """How a tally was made, and of what."""
        cut, model = self.originals.cut, self.model
        return Protocol(
            name=self.name,
            task="reconstruction",
            data=self.originals.title,
            data_sha256=tally.sha256(),
            split=self.originals.split,
            images=tally.images,
            unread=tally.unread,
            crop="none" if cut is None else "centre",
            resize="none" if cut is None else RESIZE,
            size=None if cut is None else cut.size,
            uint8=self.uint8,
            features_of=PROTOCOLS[self.name].features_of,
            weights=model.weights,
            network=network_record(self.network),
            perceptual=None if isinstance(self.perceptual, Unavailable) else self.perceptual[1],
            classifier=None,
            reference="the originals",
            reference_sha256=None,
            per_class=None,
            seed=None,
            model=model.name,
            model_sha256=model.sha256,
            precision=model.precision,
            backend=model.backend,
            sampling=None,
        )

    def pairs(self, count: int) -> tuple[Images, Images]:
        """The first pictures of the first one's size, `count` at most of four times as many, and
        their reconstructions, (n, 3, H, W) float32 in [-1, 1] each: to be looked at."""
        found: list[Images] = []
        seen = 0
        for _, pixels in self._batches(range(len(self.originals)), Tally()):
            images, seen = images_from_pixels(pixels), seen + len(pixels)
            if not found or images.shape[1:] == found[0].shape[1:]:
                found.append(images)
            if sum(map(len, found)) >= count or seen >= 4 * count:
                break
        images = np.concatenate(found)[:count]
        return images, np.concatenate([self._rebuilt(each[None])[0] for each in images])

    def _empty(self) -> Tally:
        if not self.wanted & _OF_CODEBOOK:
            return Tally()
        spec = self.engine.spec
        return Tally(codebook=CodebookCount(spec.vocabularies, spec.tokenizer.bit_order))

    def _of_lot(self, lot: int) -> Tally:
        tally = self._empty()
        for indices, pixels in self._batches(self.originals.of_lot(lot), tally):
            self._add(tally, indices, pixels)
            tally.images += len(pixels)
        return tally

    def _batches(self, indices: range, tally: Tally) -> Iterator[tuple[list[int], Pixels]]:
        """Pictures that are computed together, (B, H, W, 3), and their indices; the tally is told
        which could not be read, and the digest of those that were."""
        cut, digest = self.originals.cut, hashlib.sha256()
        at_once = 1 if cut is None else self.engine.compute_at_once(cut.size, self.batch)
        batch: list[tuple[int, Pixels]] = []
        for index, pixels in self.originals.read(indices):
            if pixels is None:
                tally.unread += 1
                continue
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
            batch.append((index, pixels))
            if len(batch) == at_once:
                yield [i for i, _ in batch], np.stack([p for _, p in batch])
                batch = []
        if batch:
            yield [i for i, _ in batch], np.stack([p for _, p in batch])
        tally.digests = [digest.digest()]

    def _add(self, tally: Tally, indices: list[int], pixels: Pixels) -> None:
        images = images_from_pixels(pixels)
        rebuilt, ids = self._rebuilt(images)
        pair = [uint8_from_images(each, self.uint8) for each in (images, rebuilt)]
        if "psnr_db" in self.wanted:
            tally.add("psnr_db", scores.psnr(*pair).sum())
        for name, value in self._of_windows(pair, images, rebuilt).items():
            try:
                tally.add(name, value().sum())
            except Unavailable:
                tally.add(name, np.nan)  # of too small a picture; the others' mean is not the set's
        if tally.codebook is not None:
            tally.codebook.add(ids)
        if not isinstance(self.network, Unavailable):
            total = len(self.originals)
            kept = ["kid" in self.wanted and is_kept(index, total) for index in indices]
            add_features(tally, self.network, ORIGINALS, seen_pixels(pixels), kept)
            seen = seen_images(rebuilt, self.uint8, PROTOCOLS[self.name].features_of)
            add_features(tally, self.network, MADE, seen, kept)

    def _of_windows(
        self, pair: list[Pixels], images: Images, rebuilt: Images
    ) -> dict[str, Callable[[], npt.NDArray[np.float64]]]:
        """Measures of pairs that need pictures of a least size."""
        found = {"ssim": lambda: scores.ssim(*pair)} if "ssim" in self.wanted else {}
        if not isinstance(self.perceptual, Unavailable):
            network = self.perceptual[0]
            both = torch.from_numpy(images), torch.from_numpy(rebuilt)
            found["lpips"] = lambda: scores.lpips(network, *both)
        return found

    def _rebuilt(self, images: Images) -> tuple[Images, npt.NDArray[np.int64]]:
        """Reconstructions of images (B, 3, H, W), of the same size, and their tokens."""
        strides = self.engine.spec.tokenizer.strides
        if self.originals.cut is None and padded_size(images.shape[2:], strides) == strides:
            strides = *strides[:-1], 2 * strides[-1]  # one position is nothing to normalize over
        ids = self.engine.encode(padded(images, strides), batch=self.batch)
        return cropped(self.engine.decode(ids, batch=self.batch), images.shape[2:]), ids

    def _measures(self, tally: Tally) -> Measures:
        """What computes each metric."""

        def of_windows(name: str, least: int) -> float:
            if not math.isfinite(tally.mean(name)):
                raise Unavailable(f"a picture has less than the {least} x {least} pixels it needs")
            return tally.mean(name)

        def lpips() -> float:
            if isinstance(self.perceptual, Unavailable):
                raise self.perceptual
            return of_windows("lpips", 16)

        def kid() -> float:
            if isinstance(self.network, Unavailable):
                raise self.network
            return scores.kid(tally.features(ORIGINALS), tally.features(MADE), seed=0)

        def codebook() -> CodebookReport:
            assert self.codebook is not None
            return self.codebook

        measures = {
            "psnr_db": lambda: tally.mean("psnr_db"),
            "ssim": lambda: of_windows("ssim", 7),
            "lpips": lpips,
            **distances(tally, self.network, "rfid"),
            "kid": kid,
            "codebook_usage": lambda: codebook().usage,
            "perplexity": lambda: codebook().perplexity,
        }
        return {name: measures[name] for name in METRICS if name in self.wanted}
