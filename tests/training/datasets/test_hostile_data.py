"""Data sets as no friend would have them: each is one clear line, or a picture that is left out,
counted and named. Never a traceback, and never anything unpickled."""

import gzip
import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hostile.data_sets import check
from PIL import Image

from m2kit.training.datasets.crops import READ, Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.table import dataset_named

RANDOM = np.random.default_rng(0)


def image(mode="RGB", size=(16, 16)):
    pixels = RANDOM.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


PNG, JPEG = encoded(image()), encoded(image(size=(64, 64)), "JPEG")
ZEROS = zlib.compress(bytes(9**8))
PALETTE = image().quantize(16)


def chunk(kind, data):
    tail = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + tail


def header_of(width, height):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def write_classes(root, classes=("a", "b"), count=4):
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(PNG)
    return root


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jpg", b""),
        ("text.png", b"hello"),
        ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("pickle.png", b"\x80\x04cos\nsystem\n"),
        ("cut.jpg", JPEG[: len(JPEG) // 2]),
        ("head.jpg", JPEG[:20]),
        ("cut.png", PNG[:60]),
        ("cut.webp", encoded(image(size=(64, 64)), "WEBP")[:300]),
        ("cut.tif", encoded(image(), "TIFF")[:200]),
        ("bomb.png", header_of(60000, 60000)),
        ("line.png", encoded(Image.new("RGB", (200_000, 1)))),
        ("nothing.png", header_of(0, 1)),
        ("text bomb.png", PNG[:33] + chunk(b"zTXt", b"a\0\0" + ZEROS) + PNG[33:]),
        ("float.tif", encoded(Image.fromarray(RANDOM.random((16, 16), np.float32)), "TIFF")),
        ("line\nbreak.png", b""),
        ("no text \udcff.png", b""),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_read_is_left_out_and_named(tmp_path, name, data):
    (write_classes(tmp_path) / "a" / name).write_bytes(data)
    check(tmp_path, {name})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.gif", encoded(image(), "GIF", save_all=True, append_images=[image(), image()])),
        ("cmyk.jpg", encoded(image("CMYK"), "JPEG")),
        ("palette.png", encoded(PALETTE, transparency=3)),
        ("palette of alphas.png", encoded(PALETTE, transparency=bytes(range(16)))),
        ("16 bits.png", encoded(Image.fromarray(RANDOM.integers(0, 2**16, (9, 9), np.uint16)))),
        ("grey.png", encoded(image("L"))),
        ("grey and alpha.png", encoded(image("LA"))),
        ("black and white.png", encoded(image("1"))),
        ("jpeg.png", JPEG),
        ("exif.jpg", encoded(image(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")),
        ("pixel.png", encoded(image(size=(1, 1)))),
        ("long.png", encoded(image(size=(900, 1)))),
        ("no text \udcff.png", PNG),
        ("._0.png", b"what a Mac keeps beside 0.png"),
    ],
)
def test_odd_pictures_are_read(tmp_path, name, data):
    (write_classes(tmp_path) / "a" / name).write_bytes(data)
    check(tmp_path, {})


def empty(root):
    pass


def empty_class(root):
    (write_classes(root) / "c").mkdir()


def one_of_each_class(root):
    write_classes(root, count=1)


def one_of_one_class(root):
    (write_classes(root) / "c").mkdir()
    (root / "c" / "only.png").write_bytes(PNG)


def loops(root):
    write_classes(root)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "itself.png").symlink_to(root / "a" / "itself.png")
    (root / "itself").symlink_to(root / "itself")


def no_files(root):
    write_classes(root)
    (root / "a" / "gone.png").symlink_to("/nowhere")
    (root / "a" / "folder.png").mkdir()
    os.mkfifo(root / "a" / "pipe.png")


def no_text(root):
    write_classes(root, ("a", "b\udcff"))


def all_broken(root):
    write_classes(root / "train")
    for path in (write_classes(root / "val")).rglob("*.png"):
        path.write_bytes(b"")


def no_held_out(root):
    write_classes(root / "train")
    (root / "val").mkdir()


def classes_called_train(root):
    write_classes(root, ("train", "bus"))


def pipe(root):
    os.mkfifo(root / "0.tar")


def folder_of_a_shards_name(root):
    (root / "0.tar").mkdir()


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (empty, r"expected pictures \(\.bmp, .*in a folder per class.*found none"),
        (empty_class, "c: expected pictures of a class, found none; fill the folder, or remove"),
        (one_of_each_class, "2 pictures to train on and 0 held out; .* two pictures or more"),
        (one_of_one_class, {}),
        (loops, {"itself.png"}),
        (no_files, {"gone.png", "folder.png", "pipe.png"}),
        (no_text, {}),
        (all_broken, r"none of the 8 pictures can be read; of the first: .*val/a/0\.png"),
        (no_held_out, "only one of them has a, b"),
        (classes_called_train, "expected train and val, or a folder per class; found only train"),
        (pipe, r"0\.tar: expected a regular file, the shard, found a pipe"),
        (folder_of_a_shards_name, r"0\.tar: expected a regular file, the shard, found a folder"),
    ],
)
def test_a_hostile_folder_is_one_line_or_a_counted_picture(tmp_path, make, outcome):
    make(tmp_path)
    check(tmp_path, outcome)


def tar(*members, form=tarfile.GNU_FORMAT):
    """A shard of (name, data) and of members that are no files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def header(name, size, kind=b"0"):
    """A block that begins a member, whatever its size; the checksum is right."""
    block = bytearray(special(name, kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def cls(text):
    return tar(*SOUND, ("z.png", PNG), ("z.cls", text))


SOUND = [pair for n in range(6) for pair in ((f"{n}.png", PNG), (f"{n}.cls", b"%d\n" % (n % 2)))]
SHARD = tar(*SOUND)
FIRST = 512 + -(-len(PNG) // 512) * 512  # bytes of the first member
CUT = "expected a whole, uncompressed .tar|breaks off"
NUMBER = r"expected a class number below 100,000 in 'z\.cls', found "


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        *((SHARD[:size], CUT) for size in (0, 1, 511, 512, 700, FIRST, FIRST + 1, FIRST + 512)),
        (b"hello" * 1000, CUT),
        (gzip.compress(SHARD), CUT),
        (SHARD[:100] + b"\xff" + SHARD[101:], CUT),
        (SHARD[:FIRST] + b"\xff" * 99 + SHARD[FIRST + 99 :], CUT),
        (header("x.png", 2**60) + bytes(9999), CUT),
        (header("x.png", -512) + bytes(9999), "negative size"),
        (header("x.png", -5120) + bytes(9999), "negative size"),
        (header("x", 2**33, b"x") + bytes(9999), CUT),
        (header("x", -5, b"L") + bytes(9999), CUT),
        ((header("x", 10, b"L") + b"a".ljust(512, b"\0")) * 3000 + SHARD, "recursion"),
        (bytes(10240), "hold no picture"),
        (tar(*SOUND, ("z.png", PNG)), "some pictures have a .cls label, and .*z has none"),
        (tar(*SOUND, *SOUND[:2]), r"expected each name once, found '0\.png' twice"),
        (tar(*SOUND, ("0.jpg", JPEG)), "one picture .* of the key '0', found 'png', 'jpg'"),
        (tar(("a.1.png", PNG), ("a.2.png", PNG)), "found '1.png', '2.png'; the key is what stands"),
        *((cls(text), NUMBER) for text in (b"", b"x", b"-1", b"1.5", b"1 2", b"0x1", b"\xff")),
        *((cls(text), NUMBER) for text in (b"100000", b"9" * 300, "²".encode())),
    ],
)  # fmt: skip
def test_a_hostile_shard_is_one_line(tmp_path, data, outcome):
    (tmp_path / "0.tar").write_bytes(data)
    check(tmp_path, outcome)
    if outcome != CUT:
        check(tmp_path / "0.tar", outcome)


@pytest.mark.parametrize(
    ("odd", "unread"),
    [
        ([("/etc/x.png", PNG), ("/etc/x.cls", b"1")], set()),  # nothing is unpacked
        ([("../../x.png", PNG), ("../../x.cls", b"1")], set()),
        ([special("z.png", tarfile.SYMTYPE, "/etc/passwd"), ("z.cls", b"0")], {"z"}),
        ([special("z.png", tarfile.LNKTYPE, "0.png"), ("z.cls", b"0")], {"z"}),
        ([special("z.png", tarfile.CHRTYPE), ("z.cls", b"0")], {"z"}),
        ([special("z.png", tarfile.FIFOTYPE), ("z.cls", b"0")], {"z"}),
        ([("z.png", b""), ("z.cls", b"0")], {"z"}),
        ([("z.cls", b"0")], {"z"}),
        ([("z.mask.png", b""), ("z.png", PNG), ("z.cls", b"1")], set()),
        ([("z.b.png", PNG), ("z.b.cls", b"1")], set()),
        ([("z.png", PNG), ("z.cls", b"7")], set()),
        ([("._0.png", b"of a Mac"), (".png", PNG), ("z.json", b"{}")], set()),
        ([special("z.png", tarfile.DIRTYPE)], set()),
        ([("z\udcff.png", b""), ("z\udcff.cls", b"0")], {"z\udcff"}),
    ],
)
def test_odd_members_of_a_shard_are_counted_or_left_alone(tmp_path, odd, unread):
    (tmp_path / "0.tar").write_bytes(tar(*SOUND, *odd, form=tarfile.PAX_FORMAT))
    check(tmp_path, {f"0.tar:{key}" for key in unread})


@pytest.mark.parametrize("left", [b"", SHARD[:FIRST]])
def test_a_shard_that_vanishes_while_it_is_read_is_counted(tmp_path, left):
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(SHARD)
    pictures = dataset_named(str(tmp_path)).load().train
    crops = Crops(pictures, Cut((16, 16)))
    assert crops[0][2] == READ
    (tmp_path / "0.tar").unlink()
    if left:
        (tmp_path / "0.tar").write_bytes(left)
    names = {pictures.name(int(r)) for *_, r in map(crops.__getitem__, range(len(crops))) if r >= 0}
    expected = {name for name in map(pictures.name, range(len(crops))) if "0.tar" in name}
    assert names == expected - ({f"{tmp_path}/0.tar:0"} if left else set())
