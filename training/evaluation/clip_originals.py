"""Clips of a folder of films as evaluation reads them: the middle one of every film, its middle
square.

SEED-Voken's evaluation takes a square at random, without a seed, and fills its list of films up to
10,000 by repeating some of them at random; here every film is measured once, so that anybody gets
the same number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from m2kit.errors import InputError
from m2kit.progress import Begin
from m2kit.runtime.engine import Engine
from m2kit.runtime.film_coding import clip_length
from m2kit.runtime.films import MOST_CLIP_PIXELS, Film
from m2kit.training.datasets.clips import FilmCollection, looked_through, middle_clip
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import file_stamp
from m2kit.training.datasets.table import DATASETS
from m2kit.training.evaluation.originals import Originals, Pixels, centre_cut
from m2kit.training.evaluation.protocol import ALL, HELD_OUT, TRAIN, Split, printable

RESIZE = "bilinear, no antialias, 8 bits, the shorter side"
CLIP = "the middle frames, every film once"


class ClipOriginals(Originals):
    """The middle clips of films."""

    def __init__(
        self,
        folder: Path,
        collection: FilmCollection,
        films: Sequence[Film],
        *,
        split: Split,
        size: tuple[int, int, int],
    ) -> None:
        """Take them.

        Args:
            folder: Where all films are.
            collection: All of them.
            films: Those of the half that is measured.
            split: That.
            size: (T, H, W) of a clip.
        """
        self.title, self.split, self.size = printable(folder.resolve().name), split, size
        self.resize, self.clip = RESIZE, CLIP
        self.short, self.unread = len(collection.short), len(collection.unread)
        self.left_out = collection.left_out_text(size[0])
        self._folder, self._collection, self._films = folder, collection, films

    def __len__(self) -> int:
        """How many there are."""
        return len(self._films)

    def pixels(self, index: int) -> Pixels:
        """A clip (T, H, W, 3) uint8.

        Raises:
            InputError: Its film is no longer what it was.
        """
        assert self.size is not None
        frames, height, width = self.size
        return middle_clip(self._films[index], frames, (height, width))

    def stamp(self) -> str:
        """As every one has it."""
        digest = hashlib.sha256()
        for film in (*self._collection.train, *self._collection.held_out):
            name = str(film.path.relative_to(self._folder))
            digest.update(f"{name}\0{file_stamp(film.path)}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def clips_of(
    engine: Engine, data: DataSet, *, split: Split, size: int | None, whole: bool, begin: Begin
) -> ClipOriginals:
    """The middle clips of a folder's films; arguments as for `originals_of`.

    Raises:
        InputError: It is no folder of films, or has none of so many frames, or none of a size that
            the model takes.
        BackendError: PyAV is not installed.
    """
    tokenizer, folder = engine.spec.tokenizer, Path(data.name)
    if data.name in DATASETS or not folder.is_dir():
        raise InputError(
            f"this model takes {tokenizer.picture} ({', '.join(tokenizer.axes)}), no picture: "
            f"expected a folder of films, found {data.name}",
            option="--data",
        )
    if whole:
        raise InputError(
            "films are never measured whole, but in clips of one size; name a size",
            option="--original-resolution, --size",
        )
    frames = clip_length(engine)
    if size is not None:
        _clip_cut(engine, data.name, frames, size)  # before films are looked through
    collection = looked_through(folder, frames, begin)
    halves = {TRAIN: collection.train, HELD_OUT: collection.held_out}
    halves[ALL] = collection.train + collection.held_out
    films = halves[split]
    if not films:
        raise InputError(
            f"{folder}: expected films of {frames} frames and more ({split}), found none; "
            + (collection.left_out_text(frames) or "give it more films"),
            option="--data, --split",
        )
    side = size or collection.size
    if side is None:
        raise InputError(
            f"the films of {folder} are of several sizes, or no squares; name the size to take",
            option="--size",
        )
    cut = _clip_cut(engine, data.name, frames, side)
    return ClipOriginals(folder, collection, films, split=split, size=(frames, *cut.size))


def _clip_cut(engine: Engine, name: str, frames: int, side: int | tuple[int, ...]) -> Cut:
    """How the frames of clips are cut, to what the model and memory take."""
    cut = centre_cut(engine, name, side)
    if frames * cut.size[0] * cut.size[1] > MOST_CLIP_PIXELS:
        raise InputError(
            f"a clip of {frames} frames of {cut.size[1]} x {cut.size[0]} pixels is over "
            f"{MOST_CLIP_PIXELS:,}; choose a smaller size",
            option="--size",
        )
    return cut
