import m2kit
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
