"""Pictures as sequences of a terminal, read back."""

import io
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from m2kit.runtime.terminal_pictures import (
    half_block_picture,
    iterm_picture,
    kitty_picture,
    kitty_removed,
    sixel_picture,
)


def noise(height, width, levels=256):
    values = np.random.default_rng(0).integers(0, levels, (height, width, 3))
    return (values * (255 // (levels - 1))).astype(np.uint8)


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(b64decode(png, validate=True))))


def test_kitty_gets_a_png_in_chunks_that_it_does_not_answer():
    pixels = noise(64, 48)
    text = kitty_picture(pixels, 12, 7, 5)
    sequences = re.findall(r"\x1b_G(.*?);(.*?)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in sequences) == text
    assert len(sequences) > 1 and all(len(data) <= 4096 for _, data in sequences)
    assert [keys[-3:] for keys, _ in sequences] == ["m=1"] * (len(sequences) - 1) + ["m=0"]
    assert sequences[0][0] == "a=T,f=100,i=5,p=1,c=12,r=7,C=1,q=2,m=1"
    assert all(len(data) % 4 == 0 for _, data in sequences)
    np.testing.assert_array_equal(pixels_of("".join(data for _, data in sequences)), pixels)
    assert kitty_removed(5) == "\x1b_Ga=d,d=I,i=5,q=2\x1b\\"


def test_iterm_gets_a_png_and_its_cells():
    pixels = noise(8, 8)
    (found,) = re.findall(r"^\x1b\]1337;File=(.*):(.*)\x07$", iterm_picture(pixels, 20, 9))
    assert {"inline=1", "width=20", "height=9", "doNotMoveCursor=1"} <= set(found[0].split(";"))
    assert f"size={len(b64decode(found[1]))}" in found[0].split(";")
    np.testing.assert_array_equal(pixels_of(found[1]), pixels)


def decoded_sixels(text):
    """(H, W, 3), as a terminal would draw them; -1 where it draws nothing."""
    (found,) = re.findall(r'^\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\$', text)
    width, height = int(found[0]), int(found[1])
    image, palette = np.full((height, width, 3), -1), {}
    colour = x = y = 0
    for token in re.findall(r"#\d+(?:;2;\d+;\d+;\d+)?|!\d+.|[$-]|[?-~]", found[2]):
        if token[0] == "#" and ";" in token:
            number, _, *values = map(int, token[1:].split(";"))
            palette[number] = [round(value * 2.55) for value in values]
        elif token[0] == "#":
            colour = int(token[1:])
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count = int(token[1:-1]) if token[0] == "!" else 1
            bits = ord(token[-1]) - 63
            for row in range(6):
                if bits >> row & 1:
                    image[y + row, x : x + count] = palette[colour]
            x += count
    return image


def test_sixels_draw_every_pixel():
    pixels = noise(12, 40, levels=2)  # 8 colours, which a palette holds exactly
    pixels[:, 10:30] = 255
    text = sixel_picture(pixels, 40, 12)
    assert "!" in text
    np.testing.assert_array_equal(decoded_sixels(text), pixels)


@pytest.mark.parametrize(("height", "whole"), [(17, 12), (3, 6), (18, 18)])
def test_sixels_have_whole_bands(height, whole):
    assert decoded_sixels(sixel_picture(noise(16, 16), 9, height)).shape == (whole, 9, 3)
    assert decoded_sixels(sixel_picture(noise(16, 16), 9, height)).min() >= 0


def cells_of(text):
    """Colours above and below of every cell, (rows, columns, 2) strings."""
    rows, colours = [], None
    for line in re.split(r"\x1b\[\d+D\x1b\[1B", text):
        assert line.endswith("\x1b[0m")
        row = []
        for token in re.findall(r"\x1b\[38;.*?m|\u2580", line):
            if token == "\u2580":
                row.append(colours)
            else:
                colours = re.findall(r"^\x1b\[38;(.*);48;(.*)m$", token)[0]
        rows.append(row)
    return rows


def test_half_blocks_have_two_pixels_each():
    pixels = noise(8, 6)
    pixels[:2] = 7  # equal neighbours, whose colours are told once
    text = half_block_picture(pixels, 6, 4, true_colour=True)
    assert text.count("38;2;7;7;7") == 1
    found = [[[c.split(";")[1:] for c in cell] for cell in row] for row in cells_of(text)]
    found = np.array(found, int).transpose(0, 2, 1, 3).reshape(8, 6, 3)
    np.testing.assert_array_equal(found, pixels)


def test_half_blocks_of_256_colours_take_the_nearest_of_the_cube():
    pixels = np.array([[[0, 0, 0], [255, 100, 1]], [[250, 250, 250], [135, 175, 215]]], np.uint8)
    cells = cells_of(half_block_picture(pixels, 2, 1, true_colour=False))
    assert cells == [[("5;16", "5;231"), ("5;202", "5;110")]]
