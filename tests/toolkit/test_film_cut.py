"""Token files of films: what they tell of cut and time, and which of it is refused."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from conftest import tiny_spec

from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.families.video import VideoTokenizerSpec
from m2kit.film_cut import FilmCut
from m2kit.timing import Timing, timing_from_times
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

SPEC = ModelSpec(VideoTokenizerSpec(32, (1, 2, 2), 1, 6, True, "lsb", 5), None)
NTSC = Timing(Fraction(30000, 1001))
VARIABLE = Timing(Fraction(20), Fraction(1, 1000), np.array([0, *range(100, 600, 50), 700]))
IDS = np.arange(3 * 3 * 2 * 2).reshape(3, 3, 2, 2, 1)  # 3 clips of 5 frames


def film_tokens(timing=NTSC, frames=11, overlap=1):
    return token_file_from_ids(IDS, SPEC, (5, 8, 7), FilmCut(frames, 5, overlap, timing))


@pytest.mark.parametrize("timing", [NTSC, VARIABLE])
def test_a_films_tokens_come_back_with_its_time_and_its_end(tmp_path, timing):
    write_tokens(tmp_path / "a.npz", film_tokens(timing))
    found = read_tokens_of(tmp_path / "a.npz", SPEC)
    np.testing.assert_array_equal(found.ids, IDS)
    film = found.film
    assert (film.frames, film.length, film.overlap, film.clips) == (11, 5, 1, 3)
    assert (film.timing.rate, film.timing.tick) == (timing.rate, timing.tick)
    np.testing.assert_array_equal(film.timing.times, timing.times)
    assert found.image_size == (5, 8, 7)
    assert converted_tokens(found, (2, 4), "msb").film == film


def test_files_of_pictures_have_nothing_of_films_and_are_as_they_were(tmp_path):
    spec = tiny_spec()
    write_tokens(tmp_path / "a.npz", token_file_from_ids(np.zeros((1, 2, 3, 2), np.int64), spec))
    assert set(np.load(tmp_path / "a.npz")) == {
        "ids", "vocabularies", "bit_order", "architecture", "spec_sha256", "image_size",
    }  # fmt: skip
    assert read_tokens(tmp_path / "a.npz").film is None


def test_the_frames_of_clips_make_up_the_film():
    for frames, length, overlap in ((11, 5, 1), (11, 5, 0), (3, 5, 2), (5, 5, 4), (9, 5, 4)):
        cut = FilmCut(frames, length, overlap, NTSC)
        seen = [
            clip * (length - overlap) + place
            for clip in range(cut.clips)
            for place in range(length)[cut.own(clip)]
        ]
        assert seen == list(range(frames)), (frames, length, overlap)


INT = np.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"film_frames": INT(0)}, "found 0 frames"),
        ({"film_frames": INT(2**40)}, "frames"),
        ({"film_frames": INT(14)}, r"expected 4 clips for 14 frames, found 3"),
        ({"film_frames": np.float64(11)}, "expected film_frames as int64"),
        ({"film_frames": np.array([11])}, "expected film_frames as int64"),
        ({"film_overlap": INT(5)}, "can overlap by 0 to 4"),
        ({"film_overlap": INT(-1)}, "can overlap by 0 to 4"),
        ({"film_rate": np.array([0, 1])}, "expected a frame rate"),
        ({"film_rate": np.array([25, 0])}, "expected film_rate as a fraction"),
        ({"film_rate": np.array([25, 1, 1])}, "expected film_rate as int64"),
        ({"film_rate": np.array([10**9, 1])}, "1000 a second at most"),
        ({"film_tick": np.array([-1, 1])}, "expected a tick"),
        ({"film_times": np.arange(3)}, "expected times of all frames"),
        ({"film_times": np.zeros(12, INT)}, "times of frames that rise from 0"),
        ({"film_times": np.arange(12) + 1}, "times of frames that rise from 0"),
        ({"film_times": np.array([0, 2**63 - 1, -(2**63)])}, "times of frames that rise from 0"),
        ({"film_times": np.zeros((2, 6), INT)}, "times of frames that rise from 0"),
        ({"film_times": None}, "expected film_times as int64"),
        ({"film_rate": None}, "expected film_rate as int64"),
    ],
)
def test_each_field_is_looked_at_when_it_is_read(tmp_path, change, words):
    path = tmp_path / "a.npz"
    write_tokens(path, film_tokens())
    arrays = dict(np.load(path)) | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=words) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_clips_of_no_film_have_no_time(tmp_path):
    write_tokens(tmp_path / "a.npz", replace(film_tokens(), film=None))
    assert read_tokens_of(tmp_path / "a.npz", SPEC).film is None


@pytest.mark.parametrize(
    "rate", ["24", "25", "30", "30000/1001", "24000/1001", "60", "12.5", "7/3"]
)
@pytest.mark.parametrize("frames", [2, 17, 400])
@pytest.mark.parametrize("rounded", [round, int])
def test_rounding_to_ticks_makes_no_variable_rate(rate, frames, rounded):
    rate, tick = Fraction(rate), Fraction(1, 1000)
    times = np.array([rounded(index / rate / tick) for index in range(frames + 1)])
    assert timing_from_times(times, tick, [rate]) == Timing(rate)
    guessed = timing_from_times(times, tick)
    assert guessed.times is None and abs(guessed.rate / rate - 1) < 0.05
    if rate.denominator <= 2 and frames > 2:
        assert guessed.rate == rate


def test_a_hole_and_a_jitter_make_a_variable_rate():
    hole = np.array([0, 40, 80, 160, 200])
    assert timing_from_times(hole, Fraction(1, 1000), [Fraction(25)]).times is hole
    jitter = np.array([0, 40, 83, 120, 160])
    assert timing_from_times(jitter, Fraction(1, 1000), [Fraction(25)]).times is jitter
    told_wrongly = timing_from_times(np.array([0, 40, 80, 120]), Fraction(1, 1000), [Fraction(90)])
    assert told_wrongly == Timing(Fraction(25))
