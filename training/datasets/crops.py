"""What a run sees of labelled pictures: crops of one size, x / 127.5 - 1, the same for the same
seed and epoch, whoever reads them and in which order. How they are cut is cut.py's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from m2kit.training.datasets.cut import Cut, Readable, cut_pixels, members_of_groups
from m2kit.training.datasets.pictures import Pictures

Item = tuple[Tensor, Tensor, Tensor]
READ = -1  # in place of the index of a picture that was replaced
_TURN, _SCALE, _SHIFT = 0.14, 0.08, 0.12  # radians; of the side; of half the side


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
        self._labels, self._readable = pictures.labels, Readable(pictures)
        self._groups = members_of_groups(pictures.groups) if one_of_group else None

    def __len__(self) -> int:
        """How many an epoch has."""
        return len(self._labels) if self._groups is None else len(self._groups)

    def whole(self) -> Crops:
        """Every picture once, cut at its centre and unchanged."""
        return Crops(self.pictures, Cut(self.cut.size))

    def __getitem__(self, number: int) -> Item:
        """The crop of an item.

        Raises:
            InputError: No picture can be read.
        """
        epoch, index = divmod(number, len(self))
        if self._groups is not None:
            random = self.cut.random(epoch, index)
            index = int(random.choice(self._groups[index]))
        picture, chosen = self._readable.read(index)
        image = cut_out(picture, self.cut, self.cut.random(epoch, chosen))
        label = int(self._labels[chosen])
        replaced = READ if chosen == index else index
        return image, torch.tensor(label), torch.tensor(replaced)


def cut_out(picture: Image.Image, cut: Cut, random: np.random.Generator) -> Tensor:
    """A crop of a picture in mode RGB: (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(cut_pixels(picture, cut, random)).permute(2, 0, 1)
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
