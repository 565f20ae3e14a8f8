import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from m2kit.errors import InputError
from m2kit.training.evaluation.input_rule import RESIZES, InputRule, ranged

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pictures(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, height, width), generator=random) / 255


@pytest.mark.parametrize("size", [(40, 50), (299, 299), (16, 90)])
@pytest.mark.parametrize(
    ("resize", "filter_"),
    [
        ("bilinear, antialias", Image.Resampling.BILINEAR),
        ("PIL bicubic float", Image.Resampling.BICUBIC),
    ],
)
def test_antialiased_resizes_are_pillows_on_floats(size, resize, filter_):
    images = pictures(64, 48)
    found = InputRule(size, resize, *PLAIN)(images).numpy()
    for picture, resized in zip((images * 255).round().numpy(), found, strict=True):
        for channel, given in zip(picture, resized, strict=True):
            expected = Image.fromarray(channel).resize(size[::-1], filter_)
            assert np.abs(np.asarray(expected).clip(0, 255) - given).max() < 2e-3  # grey levels


@pytest.mark.parametrize("size", [(5, 7), (20, 3), (11, 11)])
def test_tensorflows_bilinear_is_its_definition(size):
    images = pictures(9, 10)
    found = InputRule(size, "tf bilinear", *PLAIN)(images)
    grey = (images * 255).double()
    for y in range(size[0]):
        for x in range(size[1]):
            down, across = y * 9 / size[0], x * 10 / size[1]
            top, left = int(down + 1e-9), int(across + 1e-9)
            bottom, right = min(top + 1, 8), min(left + 1, 9)
            above, below = (
                grey[..., row, left] * (1 - (across - left))
                + grey[..., row, right] * (across - left)
                for row in (top, bottom)
            )
            expected = above * (1 - (down - top)) + below * (down - top)
            assert (found[..., y, x] - expected).abs().max() < 1e-3


def test_the_resizes_differ_where_a_picture_shrinks():
    images = pictures(64, 64)
    found = [InputRule((20, 20), resize, *PLAIN)(images) for resize in RESIZES]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().mean() > 1  # grey level


def test_grey_levels_stay_what_they_were_where_the_size_does():
    levels = (torch.arange(256, dtype=torch.float32) / 255).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    for resize in RESIZES:
        found = InputRule((16, 16), resize, *PLAIN)(levels)
        assert (found - levels * 255).abs().max() < 1e-3
    assert torch.equal(InputRule((16, 16), "tf bilinear", *PLAIN)(levels).round(), found.round())


def test_a_range_is_where_black_and_full_go():
    images = torch.tensor([0.0, 0.5, 1.0])[None, :, None, None].repeat(1, 1, 4, 4)
    found = ranged((4, 4), "tf bilinear", -1, 1)(images)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    found = ranged((4, 4), "tf bilinear")(images)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    found = InputRule((4, 4), "tf bilinear", (10.0, 20.0, 30.0), (1.0, 2.0, 5.0))(images)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-10, (127.5 - 20) / 2, 45])


def test_other_pictures_are_refused():
    rule = ranged((4, 4), "bilinear, antialias")
    with pytest.raises(InputError, match=r"in \[0, 1\], found values from -1 to 1"):
        rule(torch.linspace(-1, 1, 48).view(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"in \[0, 1\], found values from nan"):
        rule(torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(InputError, match="float64"):
        rule(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(InputError, match=r"expected \(B, 3, H, W\) float32, found \(1, 4, 4, 3\)"):
        rule(torch.zeros(1, 4, 4, 3))
    with pytest.raises(InputError, match="found none"):
        rule(torch.zeros(0, 3, 4, 4))


def test_a_rule_that_cannot_be_is_refused():
    rule = ranged((4, 4), "tf bilinear")
    with pytest.raises(
        InputError, match="no resize is called 'nearest'; choose one of: bilinear, no antialias; "
    ):
        dataclasses.replace(rule, resize="nearest")
    with pytest.raises(InputError, match="cannot be"):
        dataclasses.replace(rule, std=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="from 1 to 1 cannot be"):
        ranged((4, 4), "tf bilinear", 1, 1)
