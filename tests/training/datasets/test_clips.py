"""Clips of folders of films."""

import numpy as np
import pytest
import torch
from doubles.film_files import LOSSLESS, cut, moving, write_film

from m2kit.errors import InputError
from m2kit.runtime.films import Film
from m2kit.training.datasets.clips import Clips, films_at
from m2kit.training.datasets.crops import READ
from m2kit.training.datasets.cut import Cut


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """12 frames of 16 x 24, kept to the pixel."""
    path = tmp_path_factory.mktemp("films") / "a.mp4"
    return Film(write_film(path, moving(12, 16, 24), **LOSSLESS))


FRAMES = np.stack(list(moving(12, 16, 24)))


def uint8(clip):
    """(T, H, W, 3)."""
    return ((clip + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def place_of(clip):
    """The (first frame, left) that a clip of frames of their own height is from."""
    pixels = uint8(clip)
    count, _, width, _ = pixels.shape
    found = [
        (first, left)
        for first in range(12 - count + 1)
        for left in range(24 - width + 1)
        if np.array_equal(pixels, FRAMES[first : first + count, :, left : left + width])
    ]
    assert len(found) == 1
    return found[0]


def bilinear(pixels, height, width):
    """The definition, pixel by pixel: OpenCV's INTER_LINEAR without its fixed point."""
    found = np.zeros((height, width, 3))
    rows, columns = pixels.shape[:2]
    for y in range(height):
        for x in range(width):
            place = [(y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5]
            low = [int(np.floor(p)) for p in place]
            down, right = place[0] - low[0], place[1] - low[1]
            top, bottom = (min(max(low[0] + i, 0), rows - 1) for i in (0, 1))
            left, other = (min(max(low[1] + i, 0), columns - 1) for i in (0, 1))
            above = pixels[top, left] * (1 - right) + pixels[top, other] * right
            below = pixels[bottom, left] * (1 - right) + pixels[bottom, other] * right
            found[y, x] = above * (1 - down) + below * down
    return found


def test_validation_takes_the_middle_frames_and_the_middle_square(film):
    clips = Clips([film], 5, Cut((16, 16)))
    clip, read = clips[0]
    assert (clip.shape, clip.dtype, read.item()) == ((3, 5, 16, 16), torch.float32, READ)
    assert place_of(clip) == (4, 4)  # around the frame of index 12 // 2, as upstream's
    assert torch.equal(clips[1][0], clip)  # of the next epoch
    assert clip.min() >= -1 and clip.max() <= 1


def test_training_takes_any_frames_and_any_place_the_same_of_a_seed_and_epoch(film):
    cut = Cut((16, 16), "random", seed=7)
    clips, again = Clips([film], 9, cut), Clips([film], 9, cut)
    places = [place_of(clips[epoch][0]) for epoch in range(60)]
    assert {first for first, _ in places} == {0, 1, 2, 3}
    assert {left for _, left in places} == set(range(9))
    assert [place_of(again[epoch][0]) for epoch in reversed(range(60))] == places[::-1]
    other = Clips([film], 9, Cut((16, 16), "random", seed=8))
    assert [place_of(other[epoch][0]) for epoch in range(60)] != places


def test_a_film_as_long_as_a_clip_is_taken_whole(film):
    for place in ("random", "centre"):
        clip, _ = Clips([film], 12, Cut((16, 16), place))[3]
        assert place_of(clip)[0] == 0


def test_all_frames_of_a_clip_are_mirrored_or_none(film):
    clips = Clips([film], 4, Cut((16, 16), "centre", flip=True))
    plain = Clips([film], 4, Cut((16, 16)))[0][0]
    found = [clips[epoch][0] for epoch in range(20)]
    mirrored = [torch.equal(clip, plain.flip(3)) for clip in found]
    assert 0 < sum(mirrored) < 20
    assert all(m or torch.equal(c, plain) for m, c in zip(mirrored, found, strict=True))


@pytest.mark.parametrize("side", [8, 12, 20])
def test_the_short_side_is_scaled_without_smoothing(film, side):
    clip, _ = Clips([film], 2, Cut((side, side)))[0]
    long = 24 * side // 16
    left = round((long - side) / 2)
    for pixels, frame in zip(uint8(clip), FRAMES[5:7], strict=True):
        expected = bilinear(frame.astype(float), side, long)[:, left : left + side]
        assert np.abs(pixels - expected).max() <= 1


def test_films_are_found_in_folders_and_what_is_no_clip_is_counted(tmp_path):
    for name, count in (("b/long.mp4", 9), ("b/other.avi", 6), ("a/five.mkv", 5), ("four.avi", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        codec = {"codec": "ffv1", "pixel_format": "bgr0"} if name.endswith("mkv") else {}
        write_film(tmp_path / name, moving(count, 16, 16), **codec)
    cut(tmp_path / "b/long.mp4", tmp_path / "b/broken.mp4", 0.5)
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/a.mp4", "b/._long.mp4", "b/notes.txt"):
        (tmp_path / name).write_bytes(b"none")
    told = []
    found = films_at(tmp_path, 5, lambda stage, of: told.append((stage, of)) or told.append)
    train, held_out = (
        {str(film.path.relative_to(tmp_path)) for film in half}
        for half in (found.train, found.held_out)
    )
    assert train | held_out == {"a/five.mkv", "b/long.mp4", "b/other.avi"}
    assert "a/five.mkv" in train and len(held_out) == 1  # of two of a folder
    assert found.short == (tmp_path / "four.avi",)
    assert told == [("looking through films", 5), 1, 1, 1, 1, 1]
    assert found.size == 16
    assert found.left_out_text(5).startswith(
        f"films left out: 1 of fewer than 5 frames ({tmp_path / 'four.avi'}); 1 that cannot be "
        f"read (first: {tmp_path / 'b/broken.mp4'}: "
    )
    clips = Clips(found.train, 5, Cut((8, 8), "random"))
    assert len(clips) == 2
    assert clips[5][0].shape == (3, 5, 8, 8)
    (tmp_path / "moved").mkdir()
    (tmp_path / "b").rename(tmp_path / "moved" / "b")
    again = films_at(tmp_path / "moved", 5)
    assert {f"b/{film.path.name}" for film in again.held_out} == held_out


def test_a_folder_that_is_divided_stays_so(tmp_path):
    for name in ("train/x/1.avi", "train/2.avi", "test/x/3.avi", "other/4.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write_film(tmp_path / name, moving(4, 16, 16))
    found = films_at(tmp_path, 4)
    assert [film.path.name for film in found.train] == ["2.avi", "1.avi"]
    assert [film.path.name for film in found.held_out] == ["3.avi"]
    assert found.left_out_text(4) == ""
    (tmp_path / "test").rename(tmp_path / "tset")
    with pytest.raises(InputError, match=r"expected train and val, .*found only train"):
        films_at(tmp_path, 4)


def test_a_folder_without_clips_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with films .* found none"):
        films_at(tmp_path, 17)
    for name in ("a.avi", "b.avi"):
        write_film(tmp_path / name, moving(4, 16, 16))
    with pytest.raises(InputError, match=r"of 17 frames and more .*0 and 0; .*2 of fewer than 17"):
        films_at(tmp_path, 17)
    (tmp_path / "b.avi").unlink()
    with pytest.raises(InputError, match=r"found 1 and 0; give it more films"):
        films_at(tmp_path, 4)


def test_a_film_that_became_another_ends_in_one_line(tmp_path):
    path = write_film(tmp_path / "a.mp4", moving(9, 16, 16))
    clips = Clips([Film(path)], 9, Cut((16, 16)))
    write_film(path, moving(6, 16, 16))
    with pytest.raises(InputError, match="changed while it was read"):
        clips[0]
