"""How well a tokenizer gives pictures or clips back: PSNR, SSIM and LPIPS of pairs, the Frechet
distance and KID of the two sets, and the use of the codebook, in one pass that holds none of them.

As the official evaluation has it: reconstructions against the same originals under the same crop;
PSNR and SSIM on 8 bits a colour, to which originals and reconstructions come by one rule from
[-1, 1]; means over pictures, of clips over their frames and then over clips. Whole pictures are
framed in mid-grey up to a multiple of the strides, reconstructed one by one and cut back (the
paper's Table 6).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m2kit.errors import InputError, Unavailable
from m2kit.families.video import VideoTokenizerSpec
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
from m2kit.training.evaluation.features import FeatureNetwork
from m2kit.training.evaluation.looking import (
    MADE,
    ORIGINALS,
    RFID,
    RFVD,
    Looking,
    Measured,
    Measures,
    add_features,
    check_asked,
    distances,
    network_of,
    network_record,
    of_enough,
    of_published,
    perceptual_of,
    seen_images,
    seen_pixels,
    values_of,
)
from m2kit.training.evaluation.originals import Originals, Pixels
from m2kit.training.evaluation.protocol import (
    PROTOCOLS,
    Protocol,
    ProtocolName,
    Result,
)
from m2kit.training.evaluation.tally import Kept, Tally, is_kept, measured
from m2kit.training.models.tokenizer import frames_of

METRICS = (
    *("psnr_db", "ssim", "lpips", RFID, RFVD, "frechet_distance", "kid"),
    *("codebook_usage", "perplexity"),
)
OF_FEATURES = {RFID, RFVD, "frechet_distance", "kid"}
_OF_CODEBOOK = {"codebook_usage", "perplexity"}
Images = npt.NDArray[np.float32]


_ANYWHERE = Looking()
OF_PICTURES: ProtocolName = "open-magvit2"
OF_CLIPS: ProtocolName = "open-magvit2-video"


class Reconstruction:
    """What is measured, and how.

    Args:
        engine: The model, opened.
        model: What it is.
        find: Finds the pictures, or clips: once, when what is asked for is known to be there.
        name: Of the protocol; None is the official one of these.
        uint8: How floats become 8 bits a colour; None is the protocol's.
        looking: The networks.
        metrics: Those that must be computed, of METRICS; empty is whatever can be, of all.
        batch: Images or clips computed at once, at most.

    Attributes:
        codebook: Its use, once that is measured.

    Raises:
        InputError: There is no such feature network, or a protocol or metric is not of these, or a
            network is missing without which a metric cannot be computed that must be.
        CheckpointError: The file of a network holds something else.
    """

    def __init__(
        self,
        engine: Engine,
        model: Measured,
        find: Callable[[], Originals],
        *,
        name: ProtocolName | None = None,
        uint8: Rounding | None = None,
        looking: Looking = _ANYWHERE,
        metrics: Sequence[str] = (),
        batch: int | None = None,
    ) -> None:
        self.engine, self.model, self._find = engine, model, find
        tokenizer = engine.spec.tokenizer
        self.frames = tokenizer.frames if isinstance(tokenizer, VideoTokenizerSpec) else None
        clips = self.frames is not None
        words, official = ("clips", OF_CLIPS) if clips else ("pictures", OF_PICTURES)
        self.fid, other = (RFVD, RFID) if clips else (RFID, RFVD)
        self.name: ProtocolName = name or official
        self.named = named = PROTOCOLS[self.name]
        if named.clips != clips:
            raise InputError(
                f"{self.name} is no protocol of {words}; the official one is {official}",
                option="--protocol",
            )
        if other in metrics:
            raise InputError(
                f"{other} is not measured of {words}; see {self.fid}", option="--metrics"
            )
        self.uint8: Rounding = uint8 or named.uint8
        self.asked, self.batch = tuple(metrics), batch
        self.wanted = set(self.asked or METRICS) - {other}
        self.network = network_of(
            *(named, looking.network, looking.network_weights),
            metrics=self.wanted & OF_FEATURES,
            frames=self.frames,
        )
        self.perceptual = perceptual_of(looking.vgg, looking.heads, wanted="lpips" in self.wanted)
        self.codebook: CodebookReport | None = None
        check_asked(self.asked, self._needs(self.network))

    @cached_property
    def originals(self) -> Originals:
        """The pictures, or clips.

        Raises:
            InputError: There are none.
        """
        return self._find()

    def result(self, folder: Path | None = None, begin: Begin = silent) -> Result:
        """Measure it.

        Args:
            folder: Where sums are kept, so that the same call goes on where it was killed.
            begin: Shows how far it is.

        Raises:
            InputError: A metric that must be computed and cannot be, or nothing can be read.
            FolderError: The folder cannot be written, or holds another measurement.
        """
        check_asked(self.asked, self._needs(of_enough(self.network, len(self.originals))))
        about = to_json(self.protocol(Tally())) | {
            "pictures": self.originals.stamp(),
            "metrics": sorted(self.wanted),
        }
        advance = begin("reconstructing", len(self.originals))
        kept = Kept(folder, about, self._empty)
        tally = measured(kept, self.originals.lots, self._of_lot, advance)
        if not tally.images:
            raise InputError(f"none of the {tally.unread} {self.originals.words} can be read")
        self.codebook = tally.codebook.report() if tally.codebook else None
        values, reasons = values_of(self._measures(tally), self.asked)
        return Result(self.protocol(tally), values, reasons, tally.images)

    def _needs(self, network: FeatureNetwork | Unavailable) -> dict[str, object]:
        """What metrics cannot do without; the network is that of Frechet distances."""
        return {
            "lpips": self.perceptual,
            "kid": self.network,
            "frechet_distance": network,
            self.fid: of_published(network, self.fid),
        }

    def protocol(self, tally: Tally) -> Protocol:
        """How a tally was made, and of what."""
        originals, model = self.originals, self.model
        return Protocol(
            name=self.name,
            task="reconstruction",
            data=originals.title,
            data_sha256=tally.sha256(),
            split=originals.split,
            images=tally.images,
            unread=tally.unread + originals.unread,
            crop="none" if originals.size is None else "centre",
            resize=originals.resize,
            size=originals.size,
            uint8=self.uint8,
            features_of=self.named.features_of,
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
            clip=originals.clip,
            short=originals.short,
        )

    def pairs(self, count: int) -> tuple[Images, Images]:
        """The first pictures of the first one's size, `count` at most of four times as many, or as
        many clips as have so many frames, and their reconstructions, (n, 3, *size) float32 in
        [-1, 1] each: to be looked at."""
        count = -(-count // (self.frames or 1))
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
        """Pictures or clips that are computed together, (B, *size, 3), and their indices; the tally
        is told which could not be read, and the digest of those that were."""
        size, digest = self.originals.size, hashlib.sha256()
        at_once = 1 if size is None else self.engine.compute_at_once(size, self.batch)
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
        frames = self.frames or 1
        if "psnr_db" in self.wanted:
            tally.add("psnr_db", scores.psnr(*map(_pictures, pair)).sum() / frames)
        for name, value in self._of_windows(pair, images, rebuilt).items():
            try:
                tally.add(name, value().sum() / frames)
            except Unavailable:
                tally.add(name, np.nan)  # of too small a picture; the others' mean is not the set's
        if tally.codebook is not None:
            tally.codebook.add(ids)
        if not isinstance(self.network, Unavailable):
            total = len(self.originals)
            kept = ["kid" in self.wanted and is_kept(index, total) for index in indices]
            both = self.named.features_of == "uint8, originals too"
            seen = seen_pixels(pair[0] if both else pixels)
            add_features(tally, self.network, ORIGINALS, seen, kept)
            seen = seen_images(rebuilt, self.uint8, self.named.features_of)
            add_features(tally, self.network, MADE, seen, kept)

    def _of_windows(
        self, pair: list[Pixels], images: Images, rebuilt: Images
    ) -> dict[str, Callable[[], npt.NDArray[np.float64]]]:
        """Measures of pairs that need pictures of a least size."""
        found = {}
        if "ssim" in self.wanted:
            found["ssim"] = lambda: scores.ssim(*map(_pictures, pair))
        if not isinstance(self.perceptual, Unavailable):
            network = self.perceptual[0]
            both = [frames_of(torch.from_numpy(each)) for each in (images, rebuilt)]
            found["lpips"] = lambda: scores.lpips(network, *both)
        return found

    def _rebuilt(self, images: Images) -> tuple[Images, npt.NDArray[np.int64]]:
        """Reconstructions of images (B, 3, *size), of the same size, and their tokens."""
        size = images.shape[2:]
        if self.originals.size is None:
            strides = self.engine.spec.tokenizer.strides
            if padded_size(size, strides) == strides:
                strides = *strides[:-1], 2 * strides[-1]  # one position: nothing to normalize over
            images = padded(images, strides)
        ids = self.engine.encode(images, batch=self.batch)
        return cropped(self.engine.decode(ids, batch=self.batch), size), ids

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
            **distances(tally, self.network, self.fid),
            "kid": kid,
            "codebook_usage": lambda: codebook().usage,
            "perplexity": lambda: codebook().perplexity,
        }
        return {name: measures[name] for name in METRICS if name in self.wanted}


def _pictures(pixels: Pixels) -> Pixels:
    """Pictures, or all frames of clips: (B, *size, 3) uint8 as (B * T, H, W, 3)."""
    return pixels.reshape(-1, *pixels.shape[-3:])
