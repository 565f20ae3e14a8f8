"""What a run sees of labelled pictures: crops of one size, the same for the same seed and epoch,
whoever reads them and in which order.

Published preprocessing: the short side to the size by Pillow's bilinear filter, a random crop for
training (the centre for the pre-trained tokenizers, and always for validation), x / 127.5 - 1; no
flip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from m2kit.errors import InputError
from m2kit.training.datasets.pictures import Pictures

Item = tuple[Tensor, Tensor, Tensor]
READ = -1  # in place of the index of a picture that was replaced
_TURN, _SCALE, _SHIFT = 0.14, 0.08, 0.12  # radians; of the side; of half the side


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


class Crops(Dataset[Item]):
    """Crops (3, H, W) float32 in [-1, 1], labels int64, and READ or the index of an unread picture.

    An item's number is epoch * len(self) + index, so that each epoch crops anew. A picture that
    cannot be read is replaced by the next one that can, so that every process takes as many steps
    as the others; its index then stands in the third place.

    Args:
        pictures: Where they are from.
        cut: How they are cut.
        one_of_group: An epoch has one picture of every group, another one each time, and groups
            count alike; else it has every picture.
    """

    def __init__(self, pictures: Pictures, cut: Cut, *, one_of_group: bool = False) -> None:
        self.pictures, self.cut = pictures, cut
        self._unreadable: dict[int, str] = {}  # of this process
        self._groups: list[list[int]] | None = None
        if one_of_group:
            members: dict[str, list[int]] = {}
            for index, group in enumerate(pictures.groups):
                members.setdefault(group, []).append(index)
            self._groups = list(members.values())

    def __len__(self) -> int:
        """How many an epoch has."""
        return len(self.pictures.labels) if self._groups is None else len(self._groups)

    def __getitem__(self, number: int) -> Item:
        """The crop of an item.

        Raises:
            InputError: No picture can be read.
        """
        epoch, index = divmod(number, len(self))
        if self._groups is not None:
            random = np.random.default_rng([self.cut.seed, epoch, index])
            index = int(random.choice(self._groups[index]))
        for chosen in (*range(index, len(self.pictures.labels)), *range(index)):
            if chosen in self._unreadable:
                continue
            try:
                picture = self.pictures.read(chosen)
            except InputError as error:
                self._unreadable[chosen] = str(error)
                continue
            random = np.random.default_rng([self.cut.seed, epoch, chosen])
            label = int(self.pictures.labels[chosen])
            replaced = READ if chosen == index else index
            return cut_out(picture, self.cut, random), torch.tensor(label), torch.tensor(replaced)
        raise InputError(
            f"none of the {len(self.pictures.labels)} pictures can be read; of the first: "
            f"{self._unreadable[0]}"
        )


def cut_out(picture: Image.Image, cut: Cut, random: np.random.Generator) -> Tensor:
    """A crop of a picture in mode RGB: (3, H, W) float32 in [-1, 1]."""
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
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    image = pixels.to(torch.float32) / 127.5 - 1
    return _warped(image, cut.warp, random) if cut.warp else image


def _warped(image: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """The image (3, H, W), turned, scaled and moved at random."""
    turn, scale, right, down = strength * (random.random(4) * 2 - 1)
    size = 1 + _SCALE * scale
    cos, sin = math.cos(_TURN * turn) * size, math.sin(_TURN * turn) * size
    rows = [[cos, -sin, _SHIFT * right], [sin, cos, _SHIFT * down]]
    grid = functional.affine_grid(torch.tensor([rows]).float(), [1, *image.shape], False)
    return functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def images_of(pictures: Pictures, size: int) -> tuple[Tensor, Tensor]:
    """All pictures at once, cut at their centre: (n, 3, size, size) float32 in [-1, 1], and labels
    (n) int64.

    Raises:
        InputError: None of them can be read; one that cannot is replaced by the next.
    """
    crops = Crops(pictures, Cut((size, size)))
    images, labels, _ = zip(*(crops[index] for index in range(len(crops))), strict=True)
    return torch.stack(images), torch.stack(labels)
