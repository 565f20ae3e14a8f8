"""Films of others in: their frames, sizes, rates and times, and one line for what is none."""

import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from m2kit.errors import BackendError, InputError
from m2kit.runtime.films import Film, film_paths

av = pytest.importorskip("av")
from doubles.film_files import LOSSLESS, cut, moving, write_film  # noqa: E402

NTSC = Fraction(30000, 1001)


def read(path, *arguments):
    film = Film(path, *arguments)
    return film, np.stack(list(film.frames()))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts", "a.webm"])
def test_length_size_and_rate_are_the_files(tmp_path, name):
    how = {"codec": "libvpx-vp9"} if name == "a.webm" else {}
    path = write_film(tmp_path / name, moving(40, 32, 48), rate=NTSC, **how)
    film, found = read(path)
    assert (len(film), film.size, film.timing.rate) == (40, (32, 48), NTSC)
    assert film.timing.times is None and not film.sound
    assert np.abs(found.astype(int) - np.stack(list(moving(40, 32, 48)))).mean() < 6


@pytest.mark.parametrize("size", [(32, 48), (31, 47), (1, 2), (17, 1)])
def test_a_lossless_film_of_any_size_comes_back_to_the_pixel(tmp_path, size):
    path = write_film(tmp_path / "a.mp4", moving(9, *size), **LOSSLESS)
    film, found = read(path)
    assert film.size == size
    np.testing.assert_array_equal(found, list(moving(9, *size)))


def test_frames_can_begin_later(tmp_path):
    film = Film(write_film(tmp_path / "a.mp4", moving(9, 16, 16), **LOSSLESS))
    every = list(film.frames())
    for first in (0, 1, 8):
        np.testing.assert_array_equal(list(film.frames(first)), every[first:])
    assert list(film.frames(9)) == []


@pytest.mark.parametrize("matrix_id", ["709", "601"])
def test_colours_follow_the_matrix_that_the_film_tells(tmp_path, matrix_id):
    number = {"709": 1, "601": 6}[matrix_id]
    pixels = np.full((32, 32, 3), (30, 200, 90), np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.colorspace = number
        stream.codec_context.color_range = 1
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=f"ITU{matrix_id}")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    _, found = read(tmp_path / "a.mp4")
    assert np.abs(found.astype(int) - pixels).max() <= 3


MATRICES = {  # x' = a x + c y, y' = b x + d y; and what numpy makes of the pixels
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "counter-clockwise": ((0, -1, 1, 0), np.rot90),
    "upside down": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_as_the_display_matrix_says(tmp_path, name):
    (a, b, c, d), turn = MATRICES[name]
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path = write_film(tmp_path / "a.mp4", moving(3, 20, 32), matrix=matrix, **LOSSLESS)
    film, found = read(path)
    expected = [turn(pixels) for pixels in moving(3, 20, 32)]
    np.testing.assert_array_equal(found, expected)
    assert film.size == expected[0].shape[:2]


def test_a_slant_is_refused(tmp_path):
    matrix = (46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)  # 45 degrees
    path = write_film(tmp_path / "a.mp4", moving(3, 20, 32), matrix=matrix)
    with pytest.raises(InputError, match="found a slant"):
        Film(path)


def test_sound_is_left_out_and_told(tmp_path):
    film, found = read(write_film(tmp_path / "a.mp4", moving(5, 16, 16), sound=True))
    assert film.sound and len(found) == 5


def test_texts_of_a_film_need_be_no_texts(tmp_path):
    path = write_film(tmp_path / "a.avi", moving(5, 16, 16), codec="mpeg4")
    content = path.read_bytes()
    assert b"Lavf" in content  # the software, in its metadata
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\x80\x81"))
    assert len(read(path)[1]) == 5


TIMES = (0, 40, 80, 200, 240, 300, 340)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_rate_keeps_the_times_of_its_frames(tmp_path, name):
    path = write_film(
        tmp_path / name, moving(7, 16, 16), times=[1000 + t for t in TIMES], tick=Fraction(1, 1000)
    )
    film, _ = read(path)
    timing = film.timing
    assert [t * timing.tick * 1000 for t in timing.times[:-1].tolist()] == list(TIMES)
    assert timing.rate == len(TIMES) / (int(timing.times[-1]) * timing.tick)  # the mean


def test_a_frame_that_is_left_out_makes_no_constant_rate(tmp_path):
    """AVI counts time in frames, so that a hole is one tick."""
    times = [0, 1, 2, 4, 5, 6]
    path = write_film(
        tmp_path / "a.avi", moving(6, 16, 16), times=times, tick=Fraction(1, 25), codec="mpeg4"
    )
    assert Film(path).timing.times.tolist() == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "milliseconds", "expected"),
    [
        ("a.gif", [40] * 6, Fraction(25)),
        ("a.webp", [40] * 6, Fraction(25)),
        ("a.png", [40] * 6, Fraction(25)),
        ("a.gif", [30, 30, 40] * 4, Fraction(30)),
        ("a.webp", [33, 34, 33] * 4, Fraction(30)),
        ("a.gif", [0] * 3, Fraction(10)),  # as browsers show it
        ("a.gif", [40, 200, 40], [0, 4, 24, 28]),
        ("a.webp", [40, 200, 41], [0, 40, 240, 281]),
        ("a.png", [40, 200, 41], [0, 40, 240, 281]),
        ("a.gif", [70], Fraction(100, 7)),
    ],
)
def test_animated_pictures_are_films(tmp_path, name, milliseconds, expected):
    frames = list(moving(len(milliseconds), 20, 30))
    first, *others = map(Image.fromarray, frames)
    how = {"lossless": True} if name == "a.webp" else {}
    duration = milliseconds if len(milliseconds) > 1 else milliseconds[0]
    first.save(tmp_path / name, save_all=True, append_images=others, duration=duration, **how)
    film, found = read(tmp_path / name)
    times = film.timing.times
    assert (film.timing.rate if times is None else times.tolist()) == expected
    assert found.shape == (len(frames), 20, 30, 3)
    assert np.abs(found.astype(int) - frames).max() <= (0 if name != "a.gif" else 40)


def test_transparent_pixels_of_a_film_show_the_background(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "a.png", save_all=True, append_images=[clear], duration=40)
    _, found = read(tmp_path / "a.png", (0, 0, 255))
    assert (found == (0, 0, 255)).all()
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 8, 8, "bgra"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.array(clear), format="rgba")))
        file.mux(stream.encode(None))
    _, found = read(tmp_path / "a.mkv", (0, 0, 255))
    assert (found == (0, 0, 255)).all()


def test_a_film_is_scaled_and_cut_as_pictures_are(tmp_path):
    film, found = read(write_film(tmp_path / "a.mp4", moving(3, 32, 48)), (255, 255, 255), 16)
    assert film.size == (16, 16) and found.shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("frames", "length", "overlap", "firsts"),
    [(10, 4, 0, [0, 4, 8]), (10, 4, 1, [0, 3, 6]), (8, 4, 0, [0, 4]), (2, 4, 3, [0]),
     (5, 4, 3, [0, 1]), (3, 1, 0, [0, 1, 2])],
)  # fmt: skip
def test_clips_cover_a_film_once_and_the_last_is_filled_up(
    tmp_path, frames, length, overlap, firsts
):
    path = write_film(tmp_path / "a.mp4", moving(frames, 16, 16), **LOSSLESS)
    film, found = read(path)
    clips = list(film.clips(length, overlap))
    assert len(clips) == len(firsts)
    for clip, first in zip(clips, firsts, strict=True):
        places = np.minimum(np.arange(first, first + length), frames - 1)
        np.testing.assert_array_equal(clip.pixels, found[places])
    own = np.concatenate([clip.pixels[clip.own] for clip in clips])
    np.testing.assert_array_equal(own, found)


def test_a_clip_of_too_many_pixels_and_an_endless_overlap_are_refused(tmp_path):
    film = Film(write_film(tmp_path / "a.mp4", moving(3, 16, 16)))
    with pytest.raises(InputError, match="scale the film to a smaller size"):
        next(film.clips(2**21))
    with pytest.raises(InputError, match="can overlap by 0 to 3, found 4"):
        next(film.clips(4, 4))


def test_a_folders_films_come_in_the_order_of_their_names(tmp_path):
    for name in ("b.mp4", "a.GIF", ".c.mp4", "d.txt", "e.webm"):
        (tmp_path / name).touch()
    (tmp_path / "f.mp4").mkdir()
    assert [path.name for path in film_paths([tmp_path])] == ["a.GIF", "b.mp4", "e.webm"]
    assert film_paths([tmp_path / "d.txt"]) == [tmp_path / "d.txt"]
    with pytest.raises(InputError, match="expected a folder with films"):
        film_paths([tmp_path / "f.mp4"])


def test_a_film_that_changed_meanwhile_is_noticed(tmp_path):
    film = Film(write_film(tmp_path / "a.mp4", moving(9, 16, 16)))
    for frames, size in ((3, 16), (12, 16), (9, 32)):
        write_film(tmp_path / "a.mp4", moving(frames, size, size))
        with pytest.raises(InputError, match="changed while it was read"):
            list(film.frames())


def test_where_pyav_is_missing_one_line_says_so(tmp_path, monkeypatch):
    path = write_film(tmp_path / "a.mp4", moving(3, 16, 16))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match=r"reading films .*\[video\]"):
        Film(path)
    assert "av" not in subprocess.run(
        [sys.executable, "-c", "import sys, m2kit.runtime.films; print(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.split()  # fmt: skip


def _empty(path):
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        file.start_encoding()


def _sound_alone(path):
    with av.open(str(path), "w", format="mp4") as file:
        audio = file.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 48000
        file.mux(audio.encode(silence))
        file.mux(audio.encode(None))


def _two_sizes(path):
    parts = [path.with_suffix(f".{number}.ts") for number in (1, 2)]
    for part, side in zip(parts, (32, 48), strict=True):
        write_film(part, moving(5, side, side), container="mpegts")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def _giant(path):
    """An AVI that says in its header that its frames are giant."""
    write_film(path, moving(2, 16, 16), container="avi", codec="ffv1", pixel_format="bgr0")
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12  # of width and height
    data[place : place + 8] = struct.pack("<II", 8000, 8000)
    path.write_bytes(data)


def _giant_inside(path):
    """A film whose header says nothing of it: the frame alone does."""
    _giant_png(path)
    png = path.read_bytes()
    with av.open(str(path), "w", format="mov") as file:
        stream = file.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        file.start_encoding()
        packet = av.Packet(png)
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
        packet.is_keyframe = True
        file.mux(packet)


def _giant_png(path):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    control = chunk(b"acTL", struct.pack(">II", 2, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + control + data)


def _playlist(path):
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n")


def _damaged(path):
    write_film(path, moving(30, 32, 32), codec_options={"g": "5"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 900
    data[middle : middle + 1500] = os.urandom(1500)
    path.write_bytes(data)


HOSTILE = {
    "nothing": (lambda p: p.write_bytes(b""), "expected a film"),
    "text": (lambda p: p.write_text("no film\n" * 100), "expected a film"),
    "a picture": (lambda p: Image.new("RGB", (9, 9)).save(p, "JPEG"), "expected a film"),
    "no frame": (_empty, "expected a film"),
    "sound alone": (_sound_alone, "a file without pictures in it"),
    "two sizes": (_two_sizes, "expected frames of one size"),
    "giant": (_giant, "expected frames of 33,554,432 pixels at most, found more"),
    "giant inside": (_giant_inside, "expected a film"),
    "giant PNG": (_giant_png, "expected frames of 33,554,432 pixels at most"),
    "a playlist": (_playlist, "expected a film"),
    "damaged": (_damaged, "damaged"),
    "half a GIF": (lambda p: p.write_bytes(b"GIF89a\x10\0"), "expected a film"),
    "half a WebP": (lambda p: p.write_bytes(b"RIFF\x10\0\0\0WEBPVP8X"), "expected a film"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_sound_film_is_one_line(tmp_path, name, capfd):
    make, words = HOSTILE[name]
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        Film(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # FFmpeg's own words


FASTSTART = {"movflags": "faststart"}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"options": FASTSTART}),
        ("a.mp4", {"options": FASTSTART, **LOSSLESS}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_film_that_breaks_off_is_one_line(tmp_path, name, how, share):
    whole = write_film(tmp_path / f"whole_{name}", moving(60, 32, 48), **how)
    assert len(Film(whole)) == 60
    with pytest.raises(InputError, match="expected a"):
        Film(cut(whole, tmp_path / name, share))


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, words in (
        (tmp_path / "pipe.mp4", "found a pipe or device"),
        (tmp_path / "none.mp4", "no such film"),
        (tmp_path, "found a folder"),
    ):
        with pytest.raises(InputError, match=words):
            Film(path)


def test_the_wrong_suffix_is_no_matter(tmp_path):
    write_film(tmp_path / "a.gif", moving(3, 16, 16), container="mp4")
    assert len(Film(tmp_path / "a.gif")) == 3
