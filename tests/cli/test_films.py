"""Films through encode, decode and reconstruct: their length, rate and size are the source's."""

import json
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GOLDEN
from doubles.film_files import LOSSLESS, moving, write_film
from PIL import Image

import m2kit
from m2kit.cli import cli
from m2kit.runtime.films import Film
from m2kit.runtime.images import images_from_pixels, uint8_from_images
from m2kit.token_file import read_tokens

pytest.importorskip("torch")
NTSC = Fraction(30000, 1001)


@pytest.fixture
def here(exported, tmp_path, monkeypatch):
    (tmp_path / "v.engine").symlink_to(exported(GOLDEN / "video_tiny.ckpt")[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, status=0):
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("output", ["b.mp4", "b.mkv", "b.gif", "b.webp", "b.png"])
def test_a_film_comes_back_with_its_length_rate_and_size(here, output, overlap):
    rate = Fraction(25)
    write_film(here / "a.mp4", moving(40, 16, 24), rate=rate, sound=True, **LOSSLESS)
    done = run("encode", "a.mp4", "--overlap", overlap, "--json")
    clips = 3
    assert json.loads(done.stdout) == {
        "films": 1, "frames": 40, "clips": clips, "output": "tokens.npz",
    }  # fmt: skip
    assert "its sound is left out" in done.stderr and "borders may show" in done.stderr
    run("decode", "tokens.npz", "-o", output)
    film = Film(here / output)
    assert (len(film), film.timing.rate, film.size) == (40, rate, (16, 24))


def test_frames_are_those_that_the_engine_gives_for_the_clips(here):
    write_film(here / "a.mp4", moving(20, 16, 16), rate=NTSC, **LOSSLESS)
    run("encode", "a.mp4")
    run("decode", "tokens.npz", "-o", "b.mkv")
    film = Film(here / "b.mkv")
    assert film.timing.rate == NTSC
    pixels = np.stack(list(moving(20, 16, 16)))
    filled = np.concatenate([pixels, np.repeat(pixels[-1:], 14, axis=0)])
    with m2kit.open_engine("v.engine") as engine:
        clips = images_from_pixels(filled.reshape(2, 17, 16, 16, 3))
        rebuilt = uint8_from_images(engine.decode(engine.encode(clips))).reshape(34, 16, 16, 3)
    np.testing.assert_array_equal(np.stack(list(film.frames())), rebuilt[:20])
    run("reconstruct", "a.mp4", "-o", "c.mkv")
    both = np.stack(list(Film(here / "c.mkv").frames()))
    np.testing.assert_array_equal(both, np.concatenate([pixels, rebuilt[:20]], axis=2))


def test_odd_sides_are_framed_and_cut_back_and_times_kept(here):
    times = [0, 40, 80, 200, 240]
    write_film(here / "a.mkv", moving(5, 17, 15), times=times, tick=Fraction(1, 1000),
               codec="ffv1", pixel_format="bgr0")  # fmt: skip
    done = run("encode", "a.mkv", status=1)
    assert "image sides must be multiples" in done.stderr
    run("encode", "a.mkv", "--pad")
    run("decode", "tokens.npz", "-o", "b.mp4")
    film = Film(here / "b.mp4")
    timing = film.timing
    assert (film.size, len(film)) == ((17, 15), 5)
    assert [int(t) * timing.tick * 1000 for t in timing.times[:-1]] == times


def test_an_animated_gif_is_a_film_to_a_video_tokenizer(here):
    first, *others = map(Image.fromarray, moving(4, 16, 16))
    first.save(here / "a.gif", save_all=True, append_images=others, duration=[40, 200, 40, 80])
    run("encode", "a.gif")
    film = read_tokens(here / "tokens.npz").film
    assert (film.frames, film.timing.times.tolist()) == (4, [0, 4, 24, 28, 36])


def test_a_folder_of_films_becomes_a_folder_of_token_files(here):
    (here / "films").mkdir()
    for name in ("b.mp4", "a.webm"):
        how = {"codec": "libvpx-vp9"} if name == "a.webm" else {}
        write_film(here / "films" / name, moving(3, 16, 16), **how)
    assert "expected a folder" in run("encode", "films", status=1).stderr
    run("encode", "films", "-o", "tokens")
    assert sorted(path.name for path in (here / "tokens").iterdir()) == [
        "a.webm.npz", "b.mp4.npz",
    ]  # fmt: skip
    assert read_tokens(here / "tokens" / "b.mp4.npz").film.frames == 3
    assert "is not overwritten" in run("encode", "films", "-o", "tokens", status=1).stderr


def test_what_does_not_fit_is_one_line(here, digits_engine):
    write_film(here / "a.mp4", moving(3, 16, 16))
    (here / "bad.mp4").write_bytes((here / "a.mp4").read_bytes()[:400])
    run("encode", "a.mp4")
    for words, line in (
        (("encode", "bad.mp4"), "bad.mp4: expected a film"),
        (("encode", "a.mp4", "--overlap", 17), "can overlap by 0 to 16"),
        (("encode", "a.mp4", "--engine", digits_engine), "takes an image, no film"),
        (("decode", "tokens.npz", "-o", "a.jpg"), "ending in .mp4, .mkv, .gif, .webp, .png"),
        (("decode", "tokens.npz", "-o", "folder"), "ending in .mp4, .mkv, .gif, .webp, .png"),
        (("reconstruct", "a.mp4", "a.mp4", "-o", "b.mp4"), "expected one film"),
        (("reconstruct", "a.mp4", "-o", "a.mp4"), "is what is read"),
    ):
        done = run(*words, status=1)
        assert line in done.stderr and done.stderr.count("\n") <= 3, (words, done.stderr)
    for words in ("encode a.mp4", "decode tokens.npz -o b.mp4", "reconstruct a.mp4 -o b.mp4"):
        done = run(*words.split(), "--batch", 2, status=2)
        assert "leave out --batch: films are coded clip by clip" in done.stderr
    assert not (here / "b.mp4").exists()
