"""What a run sees of films: clips of so many frames and one size, x / 127.5 - 1, the same for the
same seed and epoch, whoever reads them and in which order.

Published preprocessing: frames that follow each other, from a random one on for training and from
the middle for validation; the short side to the size by OpenCV's bilinear filter, which smooths
nothing, on 8 bits; one crop for all frames of a clip, its place random in validation too (here at
the centre, so that every measurement is of the same pixels); no flip. A film is decoded from its
beginning to the clip's end, frame by frame: films may be long, clips of their end take as long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.runtime.films import FILM_SUFFIXES, Film
from m2kit.training.datasets.crops import READ, cut_out
from m2kit.training.datasets.cut import Cut, check_length, cut_pixels
from m2kit.training.datasets.pictures import held_out_of
from m2kit.training.datasets.sources import HELD_OUT_SHARE, halves_of

_NAMED = 10  # films that were left out, of those that are told
Item = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class FilmCollection:
    """What films of a folder can be trained on; each has as many frames as a clip, or more.

    Attributes:
        train: To be trained on, by path.
        held_out: To be measured on, by path.
        short: Paths of films of fewer frames.
        unread: A line for each file that is no film, or a damaged one.
    """

    train: tuple[Film, ...]
    held_out: tuple[Film, ...]
    short: tuple[Path, ...]
    unread: tuple[str, ...]

    @property
    def size(self) -> int | None:
        """Height and width of all films, if they are square and alike."""
        sizes = {film.size for film in (*self.train, *self.held_out)}
        height, width = sizes.pop()
        return height if height == width and not sizes else None

    def left_out_text(self, frames: int) -> str:
        """Says how many films are left out and why; nothing where all are taken."""
        parts = []
        if self.short:
            more = f" and {len(self.short) - _NAMED} more" if len(self.short) > _NAMED else ""
            names = ", ".join(map(str, self.short[:_NAMED]))
            parts.append(f"{len(self.short)} of fewer than {frames} frames ({names}{more})")
        if self.unread:
            parts.append(f"{len(self.unread)} that cannot be read (first: {self.unread[0]})")
        return f"films left out: {'; '.join(parts)}" if parts else ""


def films_at(folder: Path, frames: int, begin: Begin = silent) -> FilmCollection:
    """The films of a folder, of which there are some to train on and others to measure on;
    arguments as for `looked_through`.

    Raises:
        InputError: There are none to train on, or none to measure on.
        BackendError: PyAV is not installed.
    """
    found = looked_through(folder, frames, begin)
    if not found.train or not found.held_out:
        left_out = found.left_out_text(frames)
        raise InputError(
            f"{folder}: expected films of {frames} frames and more to train on, and others to "
            f"measure on, found {len(found.train)} and {len(found.held_out)}; "
            + (left_out or "give it more films")
        )
    return found


def looked_through(folder: Path, frames: int, begin: Begin = silent) -> FilmCollection:
    """Look through all films of a folder and of the folders in it, but for hidden ones.

    A folder with `train` and `val` is divided as it says. Else a tenth is held out of the films of
    every folder. Either half may be empty.

    Args:
        folder: Where they are.
        frames: Of a clip.
        begin: Shows how many are looked through.

    Raises:
        InputError: It has no file with a film's suffix.
        BackendError: PyAV is not installed.
    """
    halves = halves_of(folder)
    paths = [path for part in halves or (folder,) for path in sorted(_film_files(part))]
    if not paths:
        raise InputError(
            f"{folder}: expected a folder with films ({', '.join(FILM_SUFFIXES)}), found none"
        )
    films: list[Film] = []
    short: list[Path] = []
    unread: list[str] = []
    advance = begin("looking through films", len(paths))
    for path in paths:
        try:
            film = Film(path)
        except InputError as error:
            unread.append(str(error))
        else:
            if len(film) < frames:
                short.append(path)
            else:
                films.append(film)
        advance(1)
    chosen = _held_out(films, folder, halves)
    train, held_out = (
        tuple(film for film, held in zip(films, chosen, strict=True) if held == which)
        for which in (False, True)
    )
    return FilmCollection(train, held_out, tuple(short), tuple(unread))


def _held_out(
    films: Sequence[Film], folder: Path, halves: tuple[Path, Path] | None
) -> Sequence[bool]:
    """Of each film, whether it is."""
    if halves is not None:
        return [film.path.is_relative_to(halves[1]) for film in films]
    names = [str(film.path.relative_to(folder)) for film in films]
    _, labels = np.unique([os.path.dirname(name) for name in names], return_inverse=True)
    return list(map(bool, held_out_of(names, labels, HELD_OUT_SHARE)))


class Clips(Dataset[Item]):
    """Clips (3, T, H, W) float32 in [-1, 1], and READ: every film was looked through before.

    An item's number is epoch * len(self) + index, so that each epoch has another clip of a film.

    Args:
        films: Where they are from, each of T frames or more.
        frames: T.
        cut: How every frame is cut, to a square, all frames of a clip alike. Where its place is
            random the first frame is, too; else clips are the films' middle.
    """

    def __init__(self, films: Sequence[Film], frames: int, cut: Cut) -> None:
        self.films, self.frames, self.cut = films, frames, cut

    def __len__(self) -> int:
        """How many an epoch has: one of each film."""
        return len(self.films)

    def whole(self) -> Clips:
        """The middle of every film, cut at its centre and unchanged."""
        return Clips(self.films, self.frames, Cut(self.cut.size))

    def __getitem__(self, number: int) -> Item:
        """The clip of an item.

        Raises:
            InputError: The film is no longer what it was.
        """
        epoch, index = divmod(number, len(self))
        film, random = self.films[index], self.cut.random(epoch, index)
        first = _middle(film, self.frames)
        if self.cut.place == "random":
            first = int(random.integers(len(film) - self.frames + 1))
        pictures = _pictures(film, first, self.frames, min(self.cut.size))
        images = [cut_out(picture, self.cut, deepcopy(random)) for picture in pictures]
        return torch.stack(images, dim=1), torch.tensor(READ)


def middle_clip(film: Film, frames: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The clip of a film's middle, cut at the centre, as `Clips` has it without a random place:
    (T, H, W, 3) uint8.

    Raises:
        InputError: The film is no longer what it was.
    """
    cut = Cut(size)
    pictures = _pictures(film, _middle(film, frames), frames, min(size))
    return np.stack([cut_pixels(picture, cut, cut.random(0, 0)) for picture in pictures])


def _middle(film: Film, frames: int) -> int:
    """The first frame of the middle clip."""
    return len(film) // 2 - frames // 2


def _pictures(film: Film, first: int, frames: int, side: int) -> Iterator[Image.Image]:
    """Frames of a film from one on, their short side scaled."""
    for pixels in islice(film.frames(first), frames):
        yield _scaled(pixels, side, film.path)


def _film_files(folder: Path) -> Iterator[Path]:
    """By suffix; what is hidden is none, nor what is in hidden folders."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(FILM_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _scaled(pixels: npt.NDArray[np.uint8], side: int, path: Path) -> Image.Image:
    """A frame (H, W, 3) uint8 with its short side scaled to `side`, not smoothed."""
    picture = Image.fromarray(pixels)
    check_length(picture, str(path))
    short = min(picture.size)
    if short == side:
        return picture
    size = [n * side // short for n in pixels.shape[:2]]
    channels = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = functional.interpolate(channels, size, mode="bilinear", align_corners=False)
    return Image.fromarray(scaled[0].permute(1, 2, 0).numpy())
