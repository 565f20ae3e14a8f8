from dataclasses import replace

import pytest

import m2kit
from m2kit.errors import InputError
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.evaluation.report import evaluate


def test_the_shipped_example_draws_digits_that_are_not_copies(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        report, images = evaluate(engine, DIGITS, per_class=20, seed=0)
    assert images.shape == (200, 3, 32, 32)
    assert report.real_recognised > 0.97
    assert report.recognised >= 0.95
    assert report.copies < 0.1
    assert report.codebook_usage == 1.0


def fewer():
    return replace(DIGITS.load(), classes=tuple("abcdefghijk"))


def test_a_data_set_needs_no_judge_but_the_models_classes(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        report, _ = evaluate(engine, replace(DIGITS, judge=None), per_class=1, seed=0)
        assert (report.images, report.recognised, report.real_recognised) == (10, None, None)
        with pytest.raises(InputError, match="digits has 11 classes, the engine 10 classes"):
            evaluate(engine, replace(DIGITS, loader=fewer), per_class=1, seed=0)
