"""Generated pictures as evaluation reads them, in lots: drawn by an engine by image number, or read
from what `m2kit sample` or somebody else has drawn. Always of 8 bits a colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.records import to_json
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS, draw_numbers
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import Rounding, uint8_from_images
from m2kit.runtime.sample_files import Samples, open_samples
from m2kit.sampling import Sampling
from m2kit.training.evaluation.looking import Measured
from m2kit.training.evaluation.originals import LOT, Pixels
from m2kit.training.evaluation.protocol import Drawn, printable

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a protocol tells of generated pictures.

    Attributes:
        count: How many.
        size: (H, W) in pixels.
        per_class: Of each class; None is not known.
        classes: Class ids, ascending; None is not known.
        seed: None is not known.
        sampling: Every value filled in; None is not known.
        uint8: How floats became 8 bits.
        digest: Of what decides the pictures, to go on with no others.
    """

    count: int
    size: tuple[int, ...]
    per_class: int | None
    classes: tuple[int, ...] | None
    seed: int | None
    sampling: Drawn | None
    uint8: Rounding
    digest: str


class Made(Protocol):
    """Generated pictures."""

    @property
    def told(self) -> Drawing:
        """What a protocol tells of them."""

    def lot(self, lot: int) -> Iterator[tuple[Pixels, Labels | None]]:
        """Batches of a lot's pictures (b, H, W, 3) and their classes (b), if these are known; lots
        are asked for in their order."""


class DrawnPictures:
    """Pictures of all classes that an engine draws, as many of each: 0, 1, ... of every class."""

    def __init__(
        self,
        engine: Engine,
        per_class: int,
        sampling: Sampling,
        uint8: Rounding,
        batch: int | None = None,
    ) -> None:
        """Check the sampling.

        Raises:
            InputError: It is out of range, or the engine draws nothing.
        """
        _, resolved = engine.check_draw([0], sampling)
        self._engine, self._sampling, self._batch = engine, sampling, batch
        told = Drawn.by(resolved)
        size = tuple(engine.spec.size_of_grid(engine.transformer.grid))
        classes = tuple(range(engine.transformer.classes))
        count = len(classes) * per_class
        of = sha256_of_json([to_json(resolved), per_class])
        self.told = Drawing(count, size, per_class, classes, resolved.seed, told, uint8, of)

    def lot(self, lot: int) -> Iterator[tuple[Pixels, Labels | None]]:
        """As the protocol says."""
        each = self.told.per_class
        assert each is not None
        places = range(lot * LOT, min((lot + 1) * LOT, self.told.count))
        numbers = [place // each * IMAGES_OF_A_CLASS + place % each for place in places]
        batches = draw_numbers(
            self._engine, numbers, len(numbers), self._sampling, batch=self._batch
        )
        for drawn in batches:
            yield uint8_from_images(drawn.images, self.told.uint8), drawn.class_ids


class SamplesRead:
    """Pictures that are there already."""

    def __init__(self, samples: Samples, uint8: Rounding, digest: str) -> None:
        """`uint8` is what is said of pictures that do not tell how they were rounded."""
        self._samples, known = samples, samples.set
        self._batches: Iterator[tuple[Pixels, Labels | None]] | None = None
        self._rest: list[tuple[Pixels, Labels | None]] = []
        self._next = 0
        count, size = samples.count, samples.size
        if known is None:
            self.told = Drawing(count, size, None, None, None, None, uint8, digest)
        else:
            self.told = Drawing(
                count,
                size,
                known.per_class,
                known.classes,
                known.sampling.seed,
                Drawn.by(known.sampling),
                known.uint8,
                digest,
            )

    def lot(self, lot: int) -> Iterator[tuple[Pixels, Labels | None]]:
        """As the protocol says."""
        if self._batches is None:
            self._batches = self._samples.batches(LOT)
        while self._next < lot:  # measured before
            for _ in self._rows_of_next():
                pass
        yield from self._rows_of_next()

    def _rows_of_next(self) -> Iterator[tuple[Pixels, Labels | None]]:
        """The pictures of the next lot, of batches that may be cut elsewhere."""
        assert self._batches is not None
        left = min(LOT, self.told.count - self._next * LOT)
        self._next += 1
        while left:
            pixels, labels = self._rest.pop() if self._rest else next(self._batches)
            if len(pixels) > left:
                more = None if labels is None else labels[left:]
                self._rest.append((pixels[left:], more))
                pixels, labels = pixels[:left], None if labels is None else labels[:left]
            left -= len(pixels)
            yield pixels, labels


def samples_at(
    path: Path, uint8: Rounding | None, model: Measured | None, *, usual: Rounding
) -> tuple[SamplesRead, Measured]:
    """The pictures of a set's folder or of an .npz, and what has drawn them.

    Args:
        path: The folder or file.
        uint8: How they were rounded; None is what they tell themselves.
        model: What has drawn them; None is what they tell themselves.
        usual: How pictures were rounded that do not tell.

    Raises:
        InputError: It is neither, or they were rounded otherwise, or another model has drawn them.
        FolderError: Parts of the set are missing or damaged.
    """
    samples = open_samples(path)
    known = samples.set
    digest = sha256_of_file(path) if known is None else sha256_of_json(to_json(known))
    if known is not None and uint8 not in (None, known.uint8):
        raise InputError(
            f"{path} was drawn with --uint8 {known.uint8}, found {uint8}; leave that out, or draw "
            "another set",
            option="--uint8",
        )
    drew = None if known is None else known.engine_files_sha256
    if model is None:
        name = printable((known and known.engine) or path.resolve().name)
        model = Measured(name, drew or digest, "unknown", "unknown", "unknown")
    elif drew not in (None, model.sha256):
        raise InputError(
            f"{path} was drawn by another model than {model.name}; leave that out, or name the one",
            option="--samples",
        )
    return SamplesRead(samples, uint8 or usual, digest), model
