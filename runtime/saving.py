"""Images to picture files: one each, or many in a grid; PNG, JPEG or WebP by the name's suffix.

PNG and WebP keep every pixel, JPEG most of each (quality 95, colours at full resolution). Notes are
kept in the file as one JSON text: PNG's Description, or the ImageDescription of EXIF, except such
as are too long for a JPEG. Nothing of time or place is written, so that the same images and notes
give the same bytes.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m2kit.errors import InputError
from m2kit.inputs import open_input
from m2kit.outputs import check_output, new_file
from m2kit.records import JsonObject
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.pictures import MOST_PIXELS, PILLOW_ERRORS

_PNG, _JPEG, _WEBP = "PNG", "JPEG", "WEBP"
_KINDS = {".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP}
PICTURE_SUFFIXES = tuple(_KINDS)
_OPTIONS: dict[str, dict[str, Any]] = {
    _PNG: {},
    _JPEG: {"quality": 95, "subsampling": 0},
    _WEBP: {"lossless": True},
}
_LONGEST_SIDE = {_PNG: MOST_PIXELS, _JPEG: 65_500, _WEBP: 16_383}  # pixels
_DESCRIPTION, _EXIF_DESCRIPTION = "Description", 0x010E
_JPEG_NOTES = 65_000  # characters; a segment of a JPEG has 65,533 bytes
_GAP = 2  # pixels


def write_picture(
    path: Path, pixels: npt.NDArray[np.uint8], notes: JsonObject | None = None
) -> None:
    """Write pixels (H, W, 3) uint8 as a picture file, with notes; whole or not at all.

    Raises:
        FolderError: A name that no picture has, or it cannot be written.
    """
    check_output(path, *PICTURE_SUFFIXES)
    content = picture_bytes(pixels, path.suffix, notes)
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def picture_bytes(
    pixels: npt.NDArray[np.uint8], suffix: str, notes: JsonObject | None = None
) -> bytes:
    """What `write_picture` writes into a file whose name ends in such a suffix, as ".png"."""
    kind = _KINDS[suffix.lower()]
    options = dict(_OPTIONS[kind])
    if notes is not None and kind == _PNG:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(_DESCRIPTION, json.dumps(notes, sort_keys=True))
    elif notes is not None:
        text = json.dumps(notes, sort_keys=True)
        if kind != _JPEG or len(text) <= _JPEG_NOTES:
            options["exif"] = Image.Exif()
            options["exif"][_EXIF_DESCRIPTION] = text
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def notes_of_png(path: Path) -> JsonObject | None:
    """The notes that `write_picture` kept in a PNG; None where it has none or is none, whatever it
    is: it may be anybody's."""
    try:
        with open_input(path, "PNG") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on large ones
            with Image.open(file, formats=[_PNG]) as image:
                notes = json.loads(image.info.get(_DESCRIPTION, "null"))
    except (InputError, Image.DecompressionBombError, RecursionError, *PILLOW_ERRORS):
        return None
    return notes if isinstance(notes, dict) else None


class Sheet:
    """A grid of images of one size, in rows and columns on white.

    An item is an image, or several that stand one below the other; items fill row by row.
    """

    def __init__(
        self, path: Path, items: int, size: tuple[int, ...], *, columns: int, stacked: int = 1
    ) -> None:
        """An empty sheet.

        Args:
            path: The file it becomes; its suffix sets how long a side may be.
            items: How many there will be.
            size: (H, W), pixels of an image.
            columns: Items in a row, at most.
            stacked: Images of an item.

        Raises:
            InputError: More pixels than a picture may have.
        """
        self._path, self._stacked = path, stacked
        self._columns = min(columns, items)
        rows = -(-items // self._columns) * stacked
        self._pitch = [side + _GAP for side in size]
        height, width = (
            n * p - _GAP for n, p in zip((rows, self._columns), self._pitch, strict=True)
        )
        longest = _LONGEST_SIDE[_KINDS[path.suffix.lower()]]
        if height * width > MOST_PIXELS or max(height, width) > longest:
            raise InputError(
                f"a grid of {rows} x {self._columns} images would have {height} x {width} pixels; "
                f"{path.suffix} holds {MOST_PIXELS:,}, {longest:,} along a side: take fewer images "
                "or other columns, or write each into a folder",
                option="-o NAME, without suffix",
            )
        self._canvas = np.full((height, width, 3), 255, np.uint8)

    def put(self, item: int, pixels: npt.NDArray[np.uint8], layer: int = 0) -> None:
        """Put an image (H, W, 3) uint8 into its place."""
        row, column = divmod(item, self._columns)
        top, left = (row * self._stacked + layer) * self._pitch[0], column * self._pitch[1]
        height, width, _ = pixels.shape
        self._canvas[top : top + height, left : left + width] = pixels

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8, of what was put so far."""
        return self._canvas

    def write(self, notes: JsonObject | None = None) -> None:
        """Write it as a picture file; errors as for `write_picture`."""
        write_picture(self._path, self._canvas, notes)


def write_grid(
    path: Path, images: npt.NDArray[np.float32], *, columns: int, scale: int = 1
) -> None:
    """Write images (B, 3, H, W) float32 in [-1, 1] as one picture, row by row: so many columns,
    each pixel enlarged by a whole scale. The file is written whole or not at all.

    Raises:
        FolderError: A name that no picture has, or it cannot be written.
        InputError: More pixels than a picture may have.
    """
    check_output(path, *PICTURE_SUFFIXES)
    size = tuple(side * scale for side in images.shape[2:])
    sheet = Sheet(path, len(images), size, columns=columns)
    for item, pixels in enumerate(uint8_from_images(images)):
        sheet.put(item, pixels.repeat(scale, axis=0).repeat(scale, axis=1))
    sheet.write()
