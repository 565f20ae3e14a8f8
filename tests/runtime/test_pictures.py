"""One rule for pictures of others: turned, opaque, 8 bits, RGB; all else is one line."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from m2kit.errors import InputError
from m2kit.runtime.pictures import read_picture, rgb_from_pil

GREY, RGB = 0, 2  # colour types of PNG


def pixels(path, *background):
    image = read_picture(path, *background)
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, rows, more=b""):
    """The bytes of a PNG, which Pillow cannot write with 16 bits of RGB or of any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # white above left
    undo = {0: None} | {n: getattr(Image.Transpose, name) for n, name in enumerate(
        ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
         "TRANSVERSE", "ROTATE_270"), start=2)}  # fmt: skip
    stored, turn = Image.fromarray(upright), undo.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    (stored if turn is None else stored.transpose(turn)).save(path, exif=exif, quality=95)
    found = pixels(path).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() < 60  # JPEG


def test_transparent_pixels_show_the_background_and_not_their_hidden_colour(tmp_path):
    colours = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [255, 127, 127], [255, 0, 0]]]
    blue = pixels(tmp_path / "a.png", (0, 0, 255))
    assert blue.tolist() == [[[0, 0, 255], [128, 0, 127], [255, 0, 0]]]


def test_every_way_to_be_transparent_counts(tmp_path):
    grey = Image.new("L", (1, 1), 40)
    grey.save(tmp_path / "key.png", transparency=40)
    Image.merge("LA", [grey, Image.new("L", (1, 1), 0)]).save(tmp_path / "la.png")
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "p.gif", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=b"\xff\x00")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    for name in ("key.png", "la.png", "p.png", "p.gif", "bytes.png", "rgb.png"):
        assert pixels(tmp_path / name).tolist() == [[[255, 255, 255]]], name


@pytest.mark.parametrize("colour_type", [GREY, RGB])
def test_of_16_bits_the_high_byte_is_taken_of_grey_and_colour_alike(tmp_path, colour_type):
    values = [0, 255, 256, 32768, 65279, 65535]
    row = np.repeat(values, 3 if colour_type == RGB else 1).astype(">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(6, 1, 16, colour_type, [row]))
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]
    key = chunk(b"tRNS", struct.pack(">H", 32768) * (3 if colour_type == RGB else 1))
    (tmp_path / "b.png").write_bytes(png(6, 1, 16, colour_type, [row], key))
    assert pixels(tmp_path / "b.png")[0, :, 0].tolist() == [0, 0, 1, 255, 254, 255]


def test_other_deep_greys_are_read_by_the_same_rule(tmp_path):
    deep = np.array([[256, 32768]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + deep.astype(">u2").tobytes())
    for name in ("a.tiff", "a.pgm"):
        assert pixels(tmp_path / name)[0].tolist() == [[1, 1, 1], [128, 128, 128]]
    for values in (deep.astype(np.int32), deep.astype(np.float32)):
        Image.fromarray(values).save(tmp_path / "b.tiff")
        with pytest.raises(InputError, match=r"b\.tiff: expected 8 or 16 bits a channel, found 32"):
            read_picture(tmp_path / "b.tiff")


def test_every_mode_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "grey.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 10, 11])
    palette.save(tmp_path / "palette.bmp")
    expected = {
        "cmyk.jpg": (255, 0, 0), "cmyk.tiff": (255, 0, 0), "bits.png": (255, 255, 255),
        "grey.png": (7, 7, 7), "palette.bmp": (9, 10, 11),
    }  # fmt: skip
    for name, colour in expected.items():
        assert np.abs(pixels(tmp_path / name).astype(int) - colour).max() <= 1, name


def test_an_opened_file_and_an_image_of_pil_follow_the_same_rule(tmp_path):
    image = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    image.save(tmp_path / "a.png")
    packed = io.BytesIO((tmp_path / "a.png").read_bytes())
    for same in (read_picture(packed, (1, 2, 3)), rgb_from_pil(image, (1, 2, 3))):
        assert np.asarray(same).tolist() == [[[1, 2, 3]] * 3] * 2
    with pytest.raises(InputError, match=r"member\.png: expected a picture"):
        read_picture(io.BytesIO(b"no"), name="member.png")


@pytest.mark.parametrize("side", [9_500, 11_586, 13_400, 65_535])
def test_a_picture_beyond_the_limit_is_one_line_and_below_it_no_warning(tmp_path, side):
    """Pillow warns from 89 megapixels on, and raises from 179 on."""
    (tmp_path / "a.png").write_bytes(png(side, side, 1, GREY, []))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = "damaged" if side**2 <= 2**27 else "134,217,728 pixels at most; make it smaller"
        with pytest.raises(InputError, match=words):
            read_picture(tmp_path / "a.png")


def test_pictures_of_89_megapixels_and_more_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # in place of 89 million
    Image.new("RGB", (13, 13), (1, 2, 3)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(tmp_path / "a.png").shape == (13, 13, 3)
    with pytest.raises(InputError, match="168 pixels at most; make it smaller"):
        read_picture(tmp_path / "a.png", most_pixels=168)


def test_only_regular_files_are_read_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path / "pipe", "expected a regular file, the image file, found a pipe or device"),
        (tmp_path / "link.png", "found a pipe or device"),
        (tmp_path, "found a folder"),
        (tmp_path / "none.png", "no such image file"),
        (tmp_path / "file" / "a.png", "no such image file"),
        (tmp_path / "file", "expected a picture .*found something else"),
    ):
        with pytest.raises(InputError, match=words):
            read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_a_damaged_picture_is_one_error_or_a_picture(tmp_path, suffix):
    image = Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / f"a.{suffix}", **({"exif": exif} if suffix in ("png", "jpg") else {}))
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    with pytest.raises(InputError):
        read_picture(io.BytesIO(whole[: len(whole) // 2]), name="half")
    random, refused = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            at = random.integers(len(data)) if random.random() < 0.5 else random.integers(60)
            data[at] ^= 1 << int(random.integers(8))
        try:
            assert read_picture(io.BytesIO(data), name="some").mode == "RGB"
        except InputError as error:
            refused += 1
            assert str(error).startswith("some: expected ")
    assert refused > 3
