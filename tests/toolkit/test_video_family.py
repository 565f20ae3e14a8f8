"""The video tokenizer's spec: strides by level, and which lengths of clips it takes."""

from dataclasses import replace

import pytest

from m2kit.config import PRESETS, ModelSpec
from m2kit.errors import InputError, SpecError
from m2kit.families.sizes import fits, misfit
from m2kit.families.video import VideoTokenizerSpec

VIDEO = PRESETS["video-128"].spec


def video(*multipliers, frames=1, adaptive=True):
    return VideoTokenizerSpec(32, multipliers, 1, 5, adaptive, "lsb", frames)


@pytest.mark.parametrize(
    ("multipliers", "levels", "strides"),
    [
        ((1, 2, 2, 4), ((1, 2, 2), (2, 2, 2), (2, 2, 2)), (4, 8, 8)),
        ((1, 2), ((1, 2, 2),), (1, 2, 2)),
        ((2, 1, 3, 1), ((2, 2, 2), (1, 2, 2), (2, 2, 2)), (4, 8, 8)),
        ((2,), (), (1, 1, 1)),
    ],
)
def test_a_level_halves_time_unless_its_multiplier_is_one(multipliers, levels, strides):
    spec = video(*multipliers)
    assert (spec.level_strides, spec.strides) == (levels, strides)


def test_the_first_latent_frame_is_one_frame_and_every_other_a_stride():
    assert VIDEO.tokenizer.first_strides == (1, 8, 8)
    for frames, latent in ((1, 1), (5, 2), (9, 3), (17, 5), (33, 9)):
        assert VIDEO.grid_of_size((frames, 128, 64)) == (latent, 16, 8)
        assert VIDEO.size_of_grid((latent, 16, 8)) == (frames, 128, 64)
        assert fits(VIDEO.tokenizer, (frames, 128, 64))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((8, 16, 16), "T must be 1 plus a multiple of 4, found 8 (next valid: 5 and 9)"),
        ((2, 16, 16), "T must be 1 plus a multiple of 4, found 2 (next valid: 1 and 5)"),
        ((0, 16, 16), "T must be 1 plus a multiple of 4, found 0 (next valid: 1)"),
        ((5, 12, 16), "image sides must be multiples of 8, found 12 x 16"),
        ((5, 16, 0), "image sides must be multiples of 8, found 16 x 0"),
        ((16, 16), "a size has 3 numbers, T, H, W, found 16 x 16"),
    ],
)
def test_a_size_that_no_grid_covers_is_told_with_what_does(size, words):
    assert misfit(VIDEO.tokenizer, size) == words


def test_sides_of_several_factors_are_told_one_by_one():
    words = "image sides must be multiples of 2, found 8 x 9"
    assert misfit(video(1, 2), (3, 8, 9)) == words


def test_a_single_position_is_refused_where_a_norm_needs_a_variance():
    spec = video(1, 2, 2)
    words = "a clip of 1 x 4 x 4 pixels is a single .* use at least 1 x 4 x 8"
    with pytest.raises(InputError, match=words):
        spec.check_grid((1, 1, 1))
    spec.check_grid((2, 1, 1))
    replace(spec, adaptive_norm=False).check_grid((1, 1, 1))


def test_a_clip_length_that_is_never_taken_is_refused():
    assert video(1, 2, 2, frames=9).frames == 9
    with pytest.raises(SpecError, match=r"frames: T must be 1 plus a multiple of 2, found 4"):
        video(1, 2, 2, frames=4)


def test_the_multiply_adds_of_a_clip_are_known():
    """2.24e12 of an encoding: published with the issue of the model's speed."""
    layers = VIDEO.tokenizer.convolutions((17, 128, 128))
    macs = {part: sum(layer.macs for layer in of) for part, of in layers.items()}
    assert macs == {"encoder": 2_235_393_376_256, "decoder": 3_095_649_845_248}


def test_tokens_mean_something_else_than_those_of_an_image_tokenizer():
    image, own = PRESETS["tokenizer-128"].spec.tokenizer, VIDEO.tokenizer
    assert own.architecture() == image.architecture() | {"family": "video"}
    assert replace(own, frames=9).architecture() == own.architecture()
    assert ModelSpec.from_json(VIDEO.to_json()) == VIDEO
