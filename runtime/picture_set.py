"""Picture files and folders of them as images of one size, read a little before they are needed:
memory does not depend on how many there are.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError
from m2kit.host import available_cores
from m2kit.inputs import open_input
from m2kit.runtime.images import images_from_pixels
from m2kit.runtime.pictures import MOST_PIXELS, WHITE, Colour, read_picture

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class PictureSet:
    """Pictures of one size, in order.

    Attributes:
        paths: Of all, a folder's sorted by name.
        size: (H, W) in pixels.
    """

    def __init__(
        self, given: Sequence[Path], background: Colour = WHITE, side: int | None = None
    ) -> None:
        """Find the files, and read the first one.

        Args:
            given: Picture files, and folders, of which every file that has a picture's suffix is
                taken; what is hidden and folders in folders are not.
            background: What transparent pixels are laid on.
            side: The shorter side is scaled to so many pixels, the middle square taken. None leaves
                pictures as they are.

        Raises:
            InputError: A folder without pictures, a path that is no regular file, or the first
                picture cannot be read.
        """
        self.paths = [path for each in given for path in files_of(each, _SUFFIXES, "image file")]
        self._background, self._side = background, side
        self.size: tuple[int, ...] = self._pixels(self.paths[0]).shape[:2]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def batches(self, at_once: int) -> Iterator[npt.NDArray[np.float32]]:
        """The images, (B, 3, H, W) float32 in [-1, 1], so many at once, at most.

        While a batch is used, the next one is read; where that was not done in time, one more from
        then on, in a thread of its own. Not more of them from the start: beside an encoder on two
        cores, two readers took 11 % of its speed, one 4 to 5.

        Raises:
            InputError: A picture that cannot be read, or of another size than the first; the
                batches before its own were handed out.
        """
        cores, ahead = available_cores(), 1
        lots = iter([self.paths[i : i + at_once] for i in range(0, len(self.paths), at_once)])
        begun: deque[Future[npt.NDArray[np.float32]]] = deque()
        with warnings.catch_warnings():  # of a process and not of a thread: each reader restores
            warnings.simplefilter("ignore")  # what was, and would else let the others' through
            readers = ThreadPoolExecutor(cores)
            try:
                begun.append(readers.submit(self._batch, next(lots)))
                while begun:
                    batch = begun.popleft().result()
                    more = islice(lots, ahead - len(begun))
                    begun.extend(readers.submit(self._batch, lot) for lot in more)
                    yield batch
                    if begun and not begun[0].done():
                        ahead = min(ahead + 1, cores)
            finally:
                readers.shutdown(cancel_futures=True)

    def _batch(self, paths: Sequence[Path]) -> npt.NDArray[np.float32]:
        return images_from_pixels(np.stack([self._of_size(path) for path in paths]))

    def _of_size(self, path: Path) -> npt.NDArray[np.uint8]:
        pixels = self._pixels(path)
        if pixels.shape[:2] != self.size:
            (height, width), (own_height, own_width) = self.size, pixels.shape[:2]
            raise InputError(
                f"images of one call must have one size: {self.paths[0]} has {height} x {width}, "
                f"{path} has {own_height} x {own_width}; scale them to one",
                option="--resize",
            )
        return pixels

    def _pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8."""
        picture = read_picture(path, self._background)
        return np.asarray(
            picture if self._side is None else middle_square(picture, self._side, path)
        )


def files_of(path: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """The file itself, which must be there, or those of a folder that end in one of the suffixes.

    Args:
        path: Of the file or folder; what is hidden in it and folders are not taken.
        suffixes: In lower case.
        what: "image file" or "film".

    Raises:
        InputError: No regular file, or a folder with none of them.
    """
    if not os.path.isdir(path):
        open_input(path, what).close()  # said before hours are spent on those before it
        return [path]
    names = sorted(
        name
        for name in os.listdir(path)
        if name.lower().endswith(suffixes)
        and not name.startswith(".")
        and os.path.isfile(path / name)
    )
    if not names:
        plural = "films" if what == "film" else "pictures"
        raise InputError(f"{path}: expected a folder with {plural} ({', '.join(suffixes)}) in it")
    return [path / name for name in names]


def middle_square(picture: Image.Image, side: int, path: Path | str) -> Image.Image:
    """The middle of a picture whose shorter side is scaled to `side`, bilinear and smoothed, as in
    the official preprocessing (torchvision's Resize and CenterCrop, with its rounding)."""
    shorter = min(picture.size)
    width, height = (side * n // shorter for n in picture.size)
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{path}: scaled to {side} pixels it would have {width} x {height}, over "
            f"{MOST_PIXELS:,}; choose a smaller size",
            option="--resize",
        )
    left, top = round((width - side) / 2), round((height - side) / 2)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + side, top + side))
