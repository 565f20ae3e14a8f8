"""The photographs inside scikit-learn's and scikit-image's wheels; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import InputError, require

PHOTOGRAPHS = {  # package and folder -> files; no drawings, scans of text or masks
    ("sklearn", "datasets/images"): ("china.jpg", "flower.jpg"),
    ("skimage", "data"): (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
        "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
    ),
}  # fmt: skip


def photographs(short_side: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Name -> picture (H, W, 3), its short side so many pixels.

    Raises:
        BackendError: A package is not installed.
        InputError: It lacks one of them.
    """
    found = {}
    for (package, folder), names in PHOTOGRAPHS.items():
        module = require(package, extra="dev", what="the experiment with photographs")
        for name in names:
            path = Path(str(module.__file__)).parent / folder / name
            if not path.is_file():
                raise InputError(f"{path}: no such photograph; install scikit-image 0.26.0")
            picture = Image.open(path).convert("RGB")
            scale = short_side / min(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            found[name] = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return found


def tiles(picture: npt.NDArray[np.uint8], side: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The squares (side, side, 3) of a picture (H, W, 3), from its upper left corner on."""
    for top in range(0, picture.shape[0] - side + 1, side):
        for left in range(0, picture.shape[1] - side + 1, side):
            yield picture[top : top + side, left : left + side]
