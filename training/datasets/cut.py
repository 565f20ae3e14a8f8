"""How a crop is cut out of a picture: the same for the same seed, epoch and picture, whoever cuts
it. Nothing here imports torch: `m2kit encode` cuts what a training would.

Published preprocessing: the short side to the size by Pillow's bilinear filter, a random crop for
training (the centre for the pre-trained tokenizers, and always for validation); no flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError
from m2kit.runtime.pictures import MOST_SIDE
from m2kit.training.datasets.pictures import Pictures

_MOST_TIMES = 1000  # that a side of a picture may be longer than the other


@dataclass(frozen=True, slots=True)
class Cut:
    """How a crop is cut.

    Attributes:
        size: Height and width in pixels.
        place: Where a crop of a picture that is not square is taken.
        flip: Mirror every second one, at random.
        warp: 1 turns each by up to 8 degrees, scales it by up to 8 % and moves it by up to 6 % of
            its side, at random, with the colours of the border around it; 0.5 half as much.
        seed: Of place, flip and warp, with the epoch and the picture.
    """

    size: tuple[int, int]
    place: Literal["random", "centre"] = "centre"
    flip: bool = False
    warp: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a size of which a batch fills any memory."""
        if max(self.size) > MOST_SIDE:
            raise InputError(
                f"expected images of {MOST_SIDE:,} x {MOST_SIDE:,} pixels at most, found "
                f"{self.size[0]:,} x {self.size[1]:,}; choose a smaller size",
                option="--size",
            )

    def random(self, epoch: int, index: int) -> np.random.Generator:
        """What decides about the crop of a picture in an epoch."""
        return np.random.default_rng([self.seed, epoch, index])


class Readable:
    """Pictures, of which one that cannot be read, or cut, is replaced by the next one that can."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures, self._count = pictures, len(pictures.labels)
        self._unreadable: dict[int, str] = {}  # of this process

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The picture in mode RGB, or the next one, and the index of the one that was read.

        Raises:
            InputError: None can be read.
        """
        for chosen in chain(range(index, self._count), range(index)):
            if chosen in self._unreadable:
                continue
            try:
                picture = self._pictures.read(chosen)
                check_length(picture, self._pictures.name(chosen))
                return picture, chosen
            except InputError as error:
                self._unreadable[chosen] = str(error)
        raise InputError(
            f"none of the {self._count} pictures can be read; of the first: {self._unreadable[0]}"
        )


def check_length(picture: Image.Image, name: str) -> None:
    """Refuse a line of pixels, which would become an area when its short side is resized.

    Raises:
        InputError: A picture over a thousand times as long as its short side.
    """
    short, long = sorted(picture.size)
    if long > _MOST_TIMES * short:
        raise InputError(
            f"{name}: expected a picture at most {_MOST_TIMES:,} times as long as its short side, "
            f"found {picture.width} x {picture.height}"
        )


def members_of_groups(groups: Sequence[str]) -> list[list[int]]:
    """The indices of each group's pictures, by its first one."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return list(members.values())


def cut_pixels(
    picture: Image.Image, cut: Cut, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A crop of a picture in mode RGB, before it is warped: (H, W, 3) uint8."""
    height, width = cut.size
    if picture.width * height > picture.height * width:  # the height is what must fit
        whole = picture.width * height // picture.height, height
    else:
        whole = width, picture.height * width // picture.width
    if whole != picture.size:
        picture = picture.resize(whole, Image.Resampling.BILINEAR)
    spare = whole[0] - width, whole[1] - height
    if cut.place == "random":
        left, top = (int(random.integers(n + 1)) for n in spare)
    else:
        left, top = (round(n / 2) for n in spare)
    picture = picture.crop((left, top, left + width, top + height))
    if cut.flip and random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(picture)
