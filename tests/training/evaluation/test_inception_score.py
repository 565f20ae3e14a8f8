import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from m2kit.errors import Unavailable
from m2kit.training.evaluation.inception_score import add_classes, inception_score, part_of_each
from m2kit.training.evaluation.tally import Tally


class Given(torch.nn.Module):
    num_features = 10

    def forward(self, x):
        return x


def logits(count):
    return 3 * torch.randn(count, 10, generator=torch.Generator().manual_seed(count))


def score(given, parts, batch=64):
    tally = Tally()
    for start in range(0, len(given), batch):
        rows = slice(start, start + batch)
        add_classes(tally, given[rows], parts[rows])
    return inception_score(tally)


@pytest.mark.filterwarnings("ignore:.*will save all extracted features")
@pytest.mark.filterwarnings("ignore:std\\(\\)")
def test_the_score_of_one_part_is_torchmetrics():
    given, metric = logits(200), InceptionScore(Given(), splits=1)
    metric.update(given)
    assert score(given, np.zeros(200, np.int64)) == pytest.approx(
        metric.compute()[0].item(), rel=1e-5
    )


def test_the_score_is_the_number_of_classes_of_sure_pictures_and_one_of_doubtful_ones():
    one = np.zeros(70, np.int64)
    assert score(torch.eye(10).repeat(7, 1) * 1000, one) == pytest.approx(10, rel=1e-9)
    assert score(torch.zeros(70, 10), one) == pytest.approx(1, rel=1e-12)


def test_the_score_is_the_mean_over_parts_whatever_the_batches():
    given, parts = logits(103), part_of_each(103, 25)
    assert sorted(np.bincount(parts)) == [25, 26, 26, 26]
    expected = np.mean([score(given[parts == n], parts[parts == n]) for n in range(4)])
    for batch in (1, 7, 103):
        assert score(given, parts, batch) == pytest.approx(expected, rel=1e-12)
    assert score(given, np.zeros(103, np.int64)) != pytest.approx(expected, rel=1e-3)


def test_parts_do_not_follow_the_order_of_the_pictures():
    parts = part_of_each(10_000, 5000)
    assert np.bincount(parts).tolist() == [5000, 5000]
    assert abs(parts[:1000].mean() - 0.5) < 0.1
    assert set(part_of_each(4999, 5000)) == {0}
    assert (part_of_each(10_000, 5000) == parts).all()


def test_a_network_without_classes_has_no_score():
    with pytest.raises(Unavailable, match="no classes"):
        inception_score(Tally())
