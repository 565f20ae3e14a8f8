"""Film files out: what is written comes back with its length, size, rate and times."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from m2kit.errors import BackendError, FolderError, InputError
from m2kit.runtime.film_saving import WRITTEN_SUFFIXES, new_film
from m2kit.runtime.films import Film
from m2kit.timing import Timing

av = pytest.importorskip("av")
from doubles.film_files import moving  # noqa: E402

LOSSLESS = (".mkv", ".webp", ".png")
RATES = ("30000/1001", "24000/1001", "25", "12.5", "7/3", "60", "1")


def written(path, frames, timing, notes=None):
    frames = list(frames)
    with new_film(path, frames[0].shape[:2], timing, notes) as add:
        for pixels in frames:
            add(pixels)
    film = Film(path)
    found = np.stack(list(film.frames())).astype(int)
    assert (len(film), film.size) == (len(frames), frames[0].shape[:2])
    return film.timing, np.abs(found - frames)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".png"])
@pytest.mark.parametrize("rate", [*RATES, "120", "1000/7"])
def test_a_constant_rate_is_kept_to_the_fraction(tmp_path, suffix, rate):
    timing = Timing(Fraction(rate))
    found, _ = written(tmp_path / f"a{suffix}", moving(20, 16, 18), timing)
    assert (found.rate, found.times) == (timing.rate, None)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("rate", RATES)
def test_containers_with_coarse_clocks_end_when_the_film_does(tmp_path, suffix, rate):
    """Hundredths or thousandths of a second do not tell 30 from 30000/1001, but do not drift."""
    rate, frames = Fraction(rate), 40
    if suffix == ".gif" and rate > 50:
        return
    found, _ = written(tmp_path / f"a{suffix}", moving(frames, 16, 18), Timing(rate))
    assert found.times is None
    assert abs(frames / found.rate - frames / rate) < 0.05


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
@pytest.mark.parametrize("size", [(24, 40), (33, 47), (1, 3)])
def test_frames_come_back_in_any_size(tmp_path, suffix, size):
    _, errors = written(tmp_path / f"a{suffix}", moving(8, *size), Timing(Fraction(25)))
    if suffix in LOSSLESS:
        assert errors.max() == 0
    else:
        assert errors.mean() < (3 if suffix == ".mp4" else 1)


def test_mp4_keeps_plain_colours(tmp_path):
    for colour in ((30, 200, 90), (255, 0, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)):
        frames = [np.full((16, 16, 3), colour, np.uint8)] * 3
        _, errors = written(tmp_path / "a.mp4", frames, Timing(Fraction(25)))
        assert errors.max() <= 3, colour


def test_pixel_formats_are_those_that_are_told(tmp_path):
    for size, expected in (((16, 18), "yuv420p"), ((16, 17), "yuv444p"), ((17, 16), "yuv444p")):
        written(tmp_path / "a.mp4", moving(2, *size), Timing(Fraction(25)))
        with av.open(str(tmp_path / "a.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", expected)
            assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


TIMES = np.array([0, 40, 80, 200, 240, 300, 340])


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_times_of_a_variable_rate_are_kept(tmp_path, suffix):
    timing = Timing(Fraction(18), Fraction(1, 1000), TIMES)
    found, _ = written(tmp_path / f"a{suffix}", moving(6, 16, 18), timing)
    milliseconds = [int(t) * found.tick * 1000 for t in found.times]
    assert milliseconds[:-1] == TIMES[:-1].tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_notes_are_kept_where_the_container_can(tmp_path, suffix):
    notes = {"model": "v", "länge": 3}
    written(tmp_path / f"a{suffix}", moving(2, 16, 18), Timing(Fraction(25)), notes)
    with av.open(str(tmp_path / f"a{suffix}")) as file:
        told = {name.lower(): text for name, text in file.metadata.items()}
    assert json.loads(told["comment"]) == notes


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        written(tmp_path / f"{name}{suffix}", moving(5, 24, 24), Timing(Fraction(25)), {"a": 1})
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_film_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), new_film(path, (16, 16), Timing(Fraction(25))) as add:
        add(np.zeros((16, 16, 3), np.uint8))
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_what_cannot_be_written_is_one_line_before_any_work(tmp_path, monkeypatch):
    fast, slow = Timing(Fraction(60)), Timing(Fraction(25))
    for name, size, timing, error, words in (
        ("a.avi", (16, 16), slow, FolderError, r"ending in \.mp4, \.mkv, \.gif"),
        ("a.gif", (16, 16), fast, InputError, "shows a frame for 0.02 s at least"),
        ("a.webp", (16, 16_384), slow, InputError, "16,383 pixels along a side"),
    ):
        with pytest.raises(error, match=words), new_film(tmp_path / name, size, timing):
            pass
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(BackendError, match=r"writing films .*\[video\]"),
        new_film(tmp_path / "a.mp4", (16, 16), slow),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path):
    script = f"""
import resource, signal, sys
import numpy as np
from fractions import Fraction
from pathlib import Path
from m2kit.errors import FolderError
from m2kit.runtime.film_saving import new_film
from m2kit.timing import Timing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
noise = np.random.default_rng(0)
try:
    with new_film(Path({str(tmp_path / "a.mkv")!r}), (64, 64), Timing(Fraction(25))) as add:
        for _ in range(50):
            add(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
except FolderError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "cannot write" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


MEMORY = """
import sys
import numpy as np
from fractions import Fraction
from pathlib import Path
from m2kit.runtime.film_saving import new_film
from m2kit.runtime.films import Film
from m2kit.timing import Timing
path, frames = Path(sys.argv[1]), int(sys.argv[2])
pixels = np.zeros((128, 128, 3), np.uint8)
with new_film(path, (128, 128), Timing(Fraction(25))) as add:
    for index in range(frames):
        pixels[:, :, 0] = index % 256
        pixels[index % 100 : index % 100 + 20, :20] = 255
        add(pixels)
film = Film(path)
assert (len(film), film.timing.rate, film.size) == (frames, 25, (128, 128))
copy = path.with_stem("copy")
with new_film(copy, film.size, film.timing) as add:
    for clip in film.clips(17):
        for pixels in clip.pixels[clip.own]:
            add(pixels)
assert (len(Film(copy)), Film(copy).timing) == (frames, film.timing)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_memory_does_not_grow_with_the_film(tmp_path, suffix):
    """1,000 frames are 49 MB as pixels, 197 MB as floats."""
    peaks = []
    for frames in (100, 1000):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"a{suffix}"), str(frames)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)  # MB
    assert peaks[1] - peaks[0] < 15, peaks


def test_a_gif_has_the_best_colours_of_each_frame(tmp_path):
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)]
    _, errors = written(tmp_path / "a.gif", frames, Timing(Fraction(25)))
    assert errors.max() == 0  # 256 pixels have 256 colours at most
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4
