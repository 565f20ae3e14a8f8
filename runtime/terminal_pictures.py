"""Pictures as a terminal shows them: by the kitty graphics protocol, iTerm2's inline images,
sixels, or half blocks, characters of which the upper half has one colour and the lower another.

What a function returns is drawn with its upper left corner where the cursor stands; where the
cursor stands afterwards depends on the terminal.

- https://sw.kovidgoyal.net/kitty/graphics-protocol/
- https://iterm2.com/documentation-images.html
- https://vt100.net/docs/vt3xx-gp/chapter14.html, sixel graphics
"""

from __future__ import annotations

import io
from base64 import b64encode

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

_KITTY_CHUNK = 4096  # characters of base64 in one sequence, at most
_SIXEL_COLOURS = 64
_BAND = 6  # rows of pixels of a sixel
_LEVELS = np.array([0, 95, 135, 175, 215, 255])  # of the colour cube among 256 colours


def kitty_picture(pixels: Pixels, columns: int, rows: int, number: int) -> str:
    """A picture (H, W, 3) in so many cells, by the kitty graphics protocol; it takes the place of
    the one that had its number (1..2^32-1). The terminal answers nothing."""
    data = b64encode(_png(pixels)).decode("ascii")
    chunks = [data[at : at + _KITTY_CHUNK] for at in range(0, len(data), _KITTY_CHUNK)]
    head = f"a=T,f=100,i={number},p=1,c={columns},r={rows},C=1,q=2,"
    sequences = []
    for place, chunk in enumerate(chunks):
        more = int(place + 1 < len(chunks))
        sequences.append(f"\x1b_G{'' if place else head}m={more};{chunk}\x1b\\")
    return "".join(sequences)


def kitty_removed(number: int) -> str:
    """Takes away the picture of a number, with its data."""
    return f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"


def iterm_picture(pixels: Pixels, columns: int, rows: int) -> str:
    """A picture (H, W, 3) in so many cells, as an inline image of iTerm2."""
    data = _png(pixels)
    options = (
        f"inline=1;size={len(data)};width={columns};height={rows};"
        "preserveAspectRatio=0;doNotMoveCursor=1"
    )
    return f"\x1b]1337;File={options}:{b64encode(data).decode('ascii')}\x07"


def sixel_picture(pixels: Pixels, width: int, height: int) -> str:
    """A picture (H, W, 3) as sixels of so many pixels, the height cut to whole bands of 6, in 64
    colours of its own."""
    height = max(_BAND, height - height % _BAND)
    image = _scaled(pixels, width, height).quantize(_SIXEL_COLOURS)
    palette = np.array(image.getpalette(), int).reshape(-1, 3)
    indices = np.asarray(image)
    parts = [f'\x1bP0;1q"1;1;{width};{height}']
    for colour in np.unique(indices):
        red, green, blue = np.rint(palette[colour] * 100 / 255).astype(int)
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, height, _BAND):
        band = indices[top : top + _BAND]
        lines = [f"#{colour}{_sixels(band == colour)}" for colour in np.unique(band)]
        parts.append("$".join(lines) + "-")
    return "".join(parts) + "\x1b\\"


def half_block_picture(pixels: Pixels, columns: int, rows: int, *, true_colour: bool) -> str:
    """A picture (H, W, 3) in so many cells, each of two pixels, in 24-bit colour or the cube of 216
    among 256 colours."""
    shown = np.asarray(_scaled(pixels, columns, 2 * rows))
    lines = []
    for row in range(rows):
        line, before = [], ""
        for upper, lower in zip(shown[2 * row], shown[2 * row + 1], strict=True):
            colours = f"\x1b[38;{_colour(upper, true_colour)};48;{_colour(lower, true_colour)}m"
            line.append("\u2580" if colours == before else colours + "\u2580")
            before = colours
        lines.append("".join(line) + "\x1b[0m")
    return f"\x1b[{columns}D\x1b[1B".join(lines)


def _colour(pixel: Pixels, true_colour: bool) -> str:
    if true_colour:
        return "2;{};{};{}".format(*pixel.tolist())
    red, green, blue = np.abs(_LEVELS - pixel[:, None].astype(int)).argmin(axis=1).tolist()
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _sixels(band: npt.NDArray[np.bool_]) -> str:
    """The sixels (6, W) of one colour, runs of equal ones shortened."""
    values = 63 + (1 << np.arange(_BAND)) @ band
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    runs = np.diff(starts, append=len(values))
    return "".join(
        f"!{count}{chr(value)}" if count > 3 else chr(value) * count
        for value, count in zip(values[starts].tolist(), runs.tolist(), strict=True)
    )


def _scaled(pixels: Pixels, width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()
