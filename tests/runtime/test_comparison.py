"""Arg max and trajectory: what counts as the same, on logits made by hand."""

import numpy as np

from m2kit.parity_report import MISMATCHES
from m2kit.runtime.comparison import _Half, _likeliest, _tie

LOGITS = np.array([[[0.0, 3.0, 1.0], [5.0, 4.9999, 0.0]]])  # (B, N, V): the second is a near tie
TIE = _tie(LOGITS, 1.0)


def tokens(*ids):
    return np.array(ids).reshape(1, 2, 1)


def outcome(check):
    return check.found[MISMATCHES], check.passed


def test_a_tie_is_as_wide_as_the_tolerance_lets_logits_move():
    assert TIE == 2 * 1e-4 * 5
    assert _tie(LOGITS, 3.0) == 5 * TIE  # guidance u + 3 (c - u) moves by up to 2 + 3


def test_an_arg_max_may_be_missed_only_at_a_tie():
    assert outcome(_likeliest([LOGITS], [TIE], tokens(1, 0))) == (0, True)
    assert outcome(_likeliest([LOGITS], [TIE], tokens(1, 1))) == (1, True)
    assert outcome(_likeliest([LOGITS], [TIE], tokens(2, 0))) == (1, False)


def half_logits(noise):
    exact = np.random.default_rng(0).normal(size=(4, 100, 16)).astype(np.float32) * 3
    return exact + noise * np.random.default_rng(1).normal(size=exact.shape), exact


def test_half_logits_pass_with_the_noise_of_half_and_fail_with_ten_times_more():
    check = _Half().logits(*half_logits(2e-3))
    assert check.passed, check
    assert not _Half().logits(*half_logits(0.1)).passed


def test_a_flipped_arg_max_is_counted_unless_the_two_were_as_likely():
    exact = np.zeros((1, 1000, 4), np.float32)
    exact[..., 0] = 5
    exact[..., 1] = 4.99
    found = exact[..., [1, 0, 2, 3]].copy()
    assert _Half().logits(found, exact).found["differing arg max"] == 0
    exact[..., 1] = 4.9
    found = exact[..., [1, 0, 2, 3]].copy()
    assert _Half().logits(found, exact).found["differing arg max"] == 1


def test_guidance_widens_what_is_allowed_by_what_it_does_to_an_error():
    found, exact = half_logits(5e-3)
    narrow, wide = (
        _Half().guided([found], [exact], [scale], np.zeros((4, 100, 1)))[
            "guided logits of sub-token 0"
        ]
        for scale in (1.0, 4.0)
    )
    assert narrow.found["KL divergence"] == wide.found["KL divergence"]
    assert wide.allowed["KL divergence"] == 49 * narrow.allowed["KL divergence"]


def test_half_latents_may_flip_near_zero_only_and_must_be_finite():
    exact = np.random.default_rng(0).normal(size=(2, 18, 8, 8)).astype(np.float32)
    assert _Half().latents(exact + 1e-3, exact).passed
    far = exact.copy()
    far.flat[np.abs(exact).argmax()] *= -1
    assert not _Half().latents(far, exact).passed
    assert not _Half().latents(exact + 0.05, exact).passed
    bad = exact.copy()
    bad.flat[np.abs(exact).argmin()] = np.nan
    assert not _Half().latents(bad, exact).passed


def test_half_images_have_a_limit_and_nan_is_over_it():
    exact = np.zeros((1, 3, 8, 8), np.float32)
    assert _Half().image(exact + 5e-3, exact).passed
    assert not _Half().image(exact + 0.02, exact).passed
    assert not _Half().image(exact + np.nan, exact).passed
