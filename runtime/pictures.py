"""Picture files in, as 8-bit RGB. One rule for what comes in, whatever wrote it:

The first frame, turned as its EXIF orientation says. Transparent pixels are laid on a background.
Of 16 bits a channel the high byte is taken, of grey and of RGB alike (Pillow gives no more of RGB).
Palettes, CMYK, grey and black-and-white become RGB; colour profiles are not applied. Numbers of 32
bits, whose white nobody knows, are refused, as is what is damaged, too large or no regular file.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from m2kit.errors import InputError
from m2kit.inputs import open_input

Colour = tuple[int, int, int]  # red, green, blue in 0..255
WHITE: Colour = (255, 255, 255)
MOST_PIXELS = 2**27  # of a picture: 400 MB
MOST_SIDE = 4096  # of the squares that a data set's pictures are cut to: 200 MB as float32
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_READABLE = "a picture (PNG, JPEG, WebP, GIF, BMP, TIFF or PPM)"
_TOO_LARGE = "expected a picture of {:,} pixels at most; make it smaller"
_EXIF_ORIENTATION = 0x0112
_TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PILLOW_ERRORS = (  # that its readers raise on damaged files
    OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    ZeroDivisionError, struct.error,
)  # fmt: skip


def colour_from_text(text: str) -> Colour:
    """The colour of a name or code such as "white" or "#ff8000".

    Raises:
        InputError: None that Pillow knows.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise InputError(f"expected a colour such as white or #ff8000, found {text!r}") from error


def read_picture(
    source: Path | BinaryIO,
    background: Colour = WHITE,
    *,
    name: str = "",
    most_pixels: int = MOST_PIXELS,
) -> Image.Image:
    """A picture in mode RGB.

    Args:
        source: A file's path, or an opened file that can seek, such as one of an archive.
        background: What transparent pixels are laid on.
        name: Of an opened file, for errors.
        most_pixels: That it may have.

    Raises:
        InputError: No picture, a damaged one, one of more pixels, or no regular file.
    """
    if isinstance(source, (str, os.PathLike)):
        with open_input(Path(source), "image file") as file:
            return read_picture(file, background, name=str(source), most_pixels=most_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is unusual or large
            with Image.open(source, formats=_FORMATS) as image:
                _check_size(image, most_pixels)
                return rgb_from_pil(image, background)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: expected {_READABLE}, found something else") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {_TOO_LARGE.format(most_pixels)}") from error
    except PILLOW_ERRORS as error:
        raise InputError(f"{name}: expected {_READABLE}, found a damaged one ({error})") from error


def rgb_from_pil(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """An image of PIL in mode RGB, by the rule above.

    Raises:
        InputError: It has numbers of 32 bits.
    """
    rgb16 = [tile[3] for tile in getattr(image, "tile", [])] == ["RGB;16B"]
    image.load()  # TIFF: turns it, too
    turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = _grey_from_16_bits(image, key)
    elif image.mode in ("I", "F"):
        raise InputError(
            f"expected 8 or 16 bits a channel, found 32 (mode {image.mode}); convert it first"
        )
    elif rgb16 and key is not None:  # Pillow has cut the pixels, and not the colour to compare with
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _grey_from_16_bits(image: Image.Image, transparent: int | None) -> Image.Image:
    """Grey of 16 bits in mode L, or LA where one value is transparent."""
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _check_size(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise InputError(f"{_TOO_LARGE.format(most)} (found {image.width} x {image.height})")
