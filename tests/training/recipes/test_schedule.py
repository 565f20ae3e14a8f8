"""Learning rates at the corners of the published schedules."""

import pytest

from m2kit.training.recipes.schedule import corners, learning_rate
from m2kit.training.recipes.settings import RunSettings

IMAGENET = 1_281_167


def settings(**changes):
    values = {"data": "x", "epochs": 10, "batch": 10, "learning_rate": 1e-4}
    return RunSettings(**values, ema_decay=0.0, seed=0, **changes)


def test_a_rise_a_flat_top_and_a_line_down():
    run = settings(warm_up=2, warm_up_from=0.005, flat=0.05, floor=0.1)  # 1 step an epoch of 10
    rates = [learning_rate(run, step, pictures=1000) / 1e-4 for step in range(1000)]
    assert rates[0] == pytest.approx(0.005)
    assert rates[100] == pytest.approx(0.005 + 0.995 / 2)
    assert rates[200] == rates[239] == pytest.approx(1)
    assert rates[241] < 1
    assert rates[999] == pytest.approx(0.1)
    assert learning_rate(run, 5000, pictures=1000) == pytest.approx(1e-5)


def test_drops_and_a_cosine_in_steps():
    drops = settings(steps=1_500_000, decay="drops", drops=(800_000, 1_000_000))
    turns = (0, 799_999, 800_000, 999_999, 1_000_000, 1_499_999)
    rates = [learning_rate(drops, step, IMAGENET) for step in turns]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])
    cosine = settings(steps=1_500_000, warm_up=5000, decay="cosine", floor=0.01)
    turns = (0, 2500, 5000, 5000 + 747_499, 1_499_999)
    rates = [learning_rate(cosine, step, IMAGENET) for step in turns]
    assert rates == pytest.approx([0, 5e-5, 1e-4, 1e-4 * 0.505, 1e-6], rel=1e-4, abs=1e-12)


def test_a_run_that_was_given_more_stays_at_its_lowest():
    longer = settings(schedule_length=5, floor=0.1)
    assert learning_rate(longer, 499, 1000) == pytest.approx(1e-5)
    assert learning_rate(longer, 999, 1000) == pytest.approx(1e-5)


def test_the_corners_are_the_steps_where_the_rate_turns():
    def found(run):
        return [(c.what, c.step, c.learning_rate) for c in corners(run, pictures=1000)]

    rise = settings(warm_up=2, warm_up_from=0.005, flat=0.05)
    expected = [("start", 0, 5e-7), ("peak", 200, 1e-4), ("end of flat", 239, 1e-4)]
    assert found(rise)[:3] == [(a, b, pytest.approx(c)) for a, b, c in expected]
    assert found(rise)[3:] == [("end", 999, pytest.approx(1e-5))]
    longer = found(settings(schedule_length=5))
    assert [corner[:2] for corner in longer] == [("start", 0), ("lowest", 499), ("end", 999)]
    drops = found(settings(decay="drops", drops=(5, 20)))  # the second one after the end
    assert [corner[:2] for corner in drops] == [("start", 0), ("drop", 500), ("end", 999)]
    short = found(settings(steps=10, warm_up=20))  # over before the peak
    assert [corner[:2] for corner in short] == [("start", 0), ("end", 9)]
