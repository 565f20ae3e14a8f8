"""Hostile pictures and token files, and the commands that read them. A generator, as cases.py."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.cases import RIGHT, Case, Prepare


def pictures() -> Iterator[Case]:
    """Pictures of every mode, format and orientation, damaged ones, bombs, and no pictures."""
    made = dict(_pictures())
    for name, (file, data, refused) in made.items():
        for command in ("encode", "reconstruct"):
            yield Case(
                f"{command} {name}",
                (command, file, *RIGHT[command][1:]),
                refused,
                _writes(file, data),
            )
    rng = random.Random(1)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = _encoded(_image("RGB"), form)
        for index in range(30):
            data = bytearray(whole)
            if index % 3 == 0:
                data = data[: rng.randrange(len(data))]
            else:
                for _ in range(index):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            yield Case(
                f"encode a damaged {form} {index}",
                ("encode", "p.png", *RIGHT["encode"][1:]),
                None,
                _writes("p.png", bytes(data)),
            )


def _writes(file: str, data: bytes) -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return prepare


def _image(mode: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode.startswith("I;16"):
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return image.convert(mode)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _pictures() -> Iterator[tuple[str, tuple[str, bytes, bool | None]]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"{mode} PNG", ("p.png", _encoded(_image(mode), "PNG"), False)
    for mode in ("L", "RGB", "CMYK"):
        yield f"{mode} JPEG", ("p.jpg", _encoded(_image(mode), "JPEG"), False)
    for form in ("GIF", "BMP", "TIFF", "WEBP", "PPM"):
        yield f"a {form} called PNG", ("p.png", _encoded(_image("RGB"), form), None)
    for orientation in (*range(10), 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _encoded(_image("RGB"), "JPEG", exif=exif)
        yield f"orientation {orientation}", ("p.jpg", data, None)
    for size in ((1, 1), (15, 16), (16, 17), (1, 4000), (4000, 1), (17, 17)):
        yield f"{size} pixels", ("p.png", _encoded(_image("RGB", size), "PNG"), None)
    for width, height in ((2**31 - 1, 1), (60000, 60000), (0, 1), (1, 0), (2**32 - 1, 2**32 - 1)):
        yield f"a header of {width} x {height}", ("p.png", _bomb(width, height), True)
    for name, data in {
        "nothing": b"", "a byte": b"\x89", "text": b"hello", "JSON": b"{}", "HTML": b"<html>",
        "an npz": _npz(x=np.zeros(3)), "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n",
        "PDF": b"%PDF-1.4\n", "a pickle": b"\x80\x04cos\nsystem\n", "zeros": bytes(100000),
    }.items():  # fmt: skip
        yield f"{name} called PNG", ("p.png", data, True)
    frames = [_image("RGB"), _image("RGB").rotate(90)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        data = _encoded(frames[0], form, save_all=True, append_images=frames[1:])
        yield f"a {form} of two frames", ("p." + form.lower(), data, None)


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + tail

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def token_files(right: dict[str, Any]) -> Iterator[Case]:
    """Token files with every field missing, of another type, shape or value, and no archives.

    Args:
        right: The arrays of a sound one.
    """
    for name, data, refused in _token_files(right):
        for command in ("decode", "convert-tokens"):
            far = command == "convert-tokens" and name.startswith("image_size as")
            yield Case(
                f"{command} {name}",
                (command, "u.npz", *RIGHT[command][1:]),
                None if far else refused,  # which sizes fit a grid only the model tells
                _writes("u.npz", data),
            )


def _token_files(right: dict[str, Any]) -> Iterator[tuple[str, bytes, bool | None]]:
    whole = _npz(**right)
    yield "a sound file", whole, False
    yield "one more array", _npz(**right, extra=np.zeros(3)), False
    wrong: tuple[Any, ...] = (
        np.array(None, dtype=object), np.zeros(0), np.zeros((0, 0, 0, 0), np.int64),
        np.float32(1.5), np.array("x" * 100000), np.array([2**63 - 1] * 2), np.array([-1, -1]),
        np.array([0, 0]), np.array(["a", "b"]), np.zeros((1, 4, 4, 2), np.complex64),
        np.full((1, 4, 4, 2), np.nan),
        np.zeros((1, 4, 4, 2), "V8"), np.zeros((1, 4, 4, 3), np.int64), np.array(b"\xff\xfe"),
        np.zeros((1,) * 32, np.int64), np.array([8, 32, 8]), np.array(True),
        np.array("2020-01-01", "M8[D]"), np.full((1, 4, 4, 2), 2**40), np.full((1, 4, 4, 2), -1),
    )  # fmt: skip
    for field, value in right.items():
        rest = {name: array for name, array in right.items() if name != field}
        yield f"no {field}", _npz(**rest), None if field == "architecture" else True
        for index, array in enumerate(wrong):
            if array.dtype != value.dtype or not np.array_equal(array, value):
                yield f"{field} as value {index}", _npz(**rest, **{field: array}), True
    rng = random.Random(2)
    for _ in range(40):
        cut = whole[: rng.randrange(len(whole))]
        yield f"cut at {len(cut)}", cut, True
    for index in range(30):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if bytes(data) != whole:
            yield f"flipped {index}", bytes(data), None
    yield "a huge declared shape", _declared((2**40, 4, 4, 2), right), True
    yield "a negative declared shape", _declared((-1, 4, 4, 2), right), True
    yield "a zip bomb", _zipped("ids.npy", bytes(50_000_000)), True
    yield "a path in the archive", _zipped("../ids.npy", b"x"), True
    yield "an .npy", whole[30:], True
    yield "text", b"text", True


def _zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def _declared(shape: tuple[int, ...], right: dict[str, Any]) -> bytes:
    """A sound file but for ids, whose header says another shape than there is data for."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    ids = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    file = io.BytesIO(_npz(**{n: a for n, a in right.items() if n != "ids"}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("ids.npy", ids)
    return file.getvalue()
