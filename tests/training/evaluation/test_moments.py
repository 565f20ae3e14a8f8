import tracemalloc

import numpy as np
import pytest
import torch

from m2kit.errors import InputError, Unavailable
from m2kit.training.evaluation.moments import (
    Moments,
    Published,
    frechet_distance,
    of_published_npz,
)


def features(seed, count, dimensions):
    """Correlated, with means far from 0, as those of a network."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((dimensions, dimensions)) / dimensions**0.5
    drawn = random.standard_normal((count, dimensions)) @ mixing + random.random(dimensions)
    return torch.from_numpy(np.maximum(drawn, 0).astype(np.float32))


def moments_of(*parts):
    moments = Moments(parts[0].shape[1])
    for part in parts:
        moments.add(part)
    return moments


def test_mean_and_covariance_are_numpys():
    drawn = features(0, 500, 24)
    moments = moments_of(*drawn.split(64))
    expected = drawn.double().numpy()
    assert moments.count == 500
    assert np.abs(moments.mean - expected.mean(0)).max() < 1e-12
    assert np.abs(moments.covariance - np.cov(expected, rowvar=False)).max() < 1e-12


def test_seven_uneven_shards_merge_into_what_one_pass_gives():
    drawn, reference = features(1, 700, 32), moments_of(features(2, 500, 32))
    whole = moments_of(drawn)
    shards = [moments_of(part) for part in drawn.split([1, 3, 250, 46, 299, 100, 1])]
    merged = Moments(32)
    for shard in reversed(shards):
        merged.merge(shard)
    assert merged.count == whole.count
    for found, expected in ((merged.sum, whole.sum), (merged.outer, whole.outer)):
        assert np.abs(found / expected - 1).max() < 1e-9
    distances = [frechet_distance(one, reference) for one in (merged, whole)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-9)


def test_the_sums_are_those_that_torchmetrics_keeps():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = 16

        def forward(self, x):
            return x

    real, generated = features(3, 300, 16), features(4, 400, 16)
    metric = FrechetInceptionDistance(Given())
    for number in range(0, 400, 100):
        metric.update(real[number : number + 100], real=True)
        metric.update(generated[number : number + 100], real=False)
    ours = moments_of(*real.split(100))
    assert metric.real_features_num_samples.item() == ours.count
    assert torch.equal(metric.real_features_sum, torch.from_numpy(ours.sum))
    assert np.abs(metric.real_features_cov_sum.numpy() - ours.outer).max() < 1e-9
    found = frechet_distance(ours, moments_of(generated))
    assert found == pytest.approx(metric.compute().item(), rel=1e-5)  # theirs ends in float32


@pytest.mark.parametrize("dimensions", [1, 2, 64])
def test_the_distance_is_the_closed_form_of_two_gaussians(dimensions):
    random = np.random.default_rng(5)
    basis = np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0]
    a, b = 10 ** random.uniform(-4, 2, (2, dimensions))  # variances along one basis
    means = random.standard_normal((2, dimensions))
    gaussians = [
        Published(mean, (basis * variances) @ basis.T)
        for mean, variances in zip(means, (a, b), strict=True)
    ]
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_two_planes_is_that_of_a_formula_of_its_own():
    """In two dimensions tr (S1 S2)^(1/2) is (tr S1 S2 + 2 (det S1 S2)^(1/2))^(1/2)."""
    random = np.random.default_rng(6)
    for _ in range(20):
        roots = random.standard_normal((2, 2, 2))
        a, b = (root @ root.T for root in roots)
        common = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        expected = np.trace(a) + np.trace(b) - 2 * common
        found = frechet_distance(Published(np.zeros(2), a), Published(np.zeros(2), b))
        assert found == pytest.approx(expected, abs=1e-9 * np.trace(a + b))


def test_matrices_without_full_rank_are_no_special_case():
    """Two sets that fill different halves of the dimensions share nothing, and overlapping ones
    what they have in common; both have 24 dimensions in which nothing varies."""
    variances = np.linspace(1, 3, 40)
    low, high, middle = (
        np.where((np.arange(64) >= start) & (np.arange(64) < start + 24), 1.0, 0)
        for start in (0, 24, 12)
    )
    basis = np.linalg.qr(np.random.default_rng(7).standard_normal((64, 64)))[0]

    def gaussian(there):
        spread = there * np.resize(variances, 64)
        return Published(np.zeros(64), (basis * spread) @ basis.T), spread

    (a, of_a), (b, of_b), (c, of_c) = map(gaussian, (low, high, middle))
    assert frechet_distance(a, b) == pytest.approx(of_a.sum() + of_b.sum(), rel=1e-6)
    expected = np.square(np.sqrt(of_a) - np.sqrt(of_c)).sum()
    assert frechet_distance(a, c) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) < 1e-9 * of_a.sum()


@pytest.mark.parametrize("dimensions", [8, 300])
def test_a_set_is_at_no_distance_from_itself(dimensions):
    moments = moments_of(features(8, 2 * dimensions, dimensions))
    assert 0 <= frechet_distance(moments, moments) < 1e-9 * np.trace(moments.covariance)


def test_fewer_samples_than_dimensions_are_refused_with_the_reason():
    few, enough = moments_of(features(9, 5, 8)), moments_of(features(9, 8, 8))
    with pytest.raises(Unavailable, match="of 8 features needs 8 samples or more, found 5"):
        frechet_distance(enough, few)
    assert frechet_distance(enough, enough) < 1e-9
    with pytest.raises(Unavailable, match="no samples"):
        frechet_distance(Moments(8), enough)
    with pytest.raises(InputError, match="of 8 and of 7 features cannot be compared"):
        frechet_distance(enough, moments_of(features(9, 10, 7)))


def test_features_that_cannot_be_added_are_refused():
    moments = Moments(4)
    with pytest.raises(InputError, match=r"expected \(B, 4\) features, found \(2, 3\)"):
        moments.add(torch.zeros(2, 3))
    with pytest.raises(InputError, match="not finite"):
        moments.add(torch.full((2, 4), torch.nan))
    with pytest.raises(InputError, match="do not merge"):
        moments.merge(Moments(3))
    assert moments.count == 0


def test_published_statistics_are_read_as_their_files_name_them(tmp_path):
    one, other = moments_of(features(12, 30, 6)), moments_of(features(13, 30, 4))
    path = tmp_path / "VIRTUAL.npz"
    np.savez(
        path, arr_0=np.zeros((2, 8, 8, 3), np.uint8),
        mu=one.mean.astype(np.float32), sigma=one.covariance,
        mu_s=other.mean, sigma_s=other.covariance,
    )  # fmt: skip
    pooled, spatial = of_published_npz(path)
    assert pooled.count is None
    assert frechet_distance(pooled, one) < 1e-9
    assert frechet_distance(other, spatial) < 1e-9
    np.savez(path, mu=one.mean, sigma=one.covariance)
    assert of_published_npz(path)[1] is None
    np.savez(path, mu=one.mean, sigma=one.covariance[:5])
    with pytest.raises(InputError, match=r"expected a mean \(D\) and a covariance \(D, D\)"):
        of_published_npz(path)
    np.savez(path, mu=one.mean, sigma=np.full((6, 6), np.nan))
    with pytest.raises(InputError, match="no finite numbers"):
        of_published_npz(path)
    for odd in (-one.covariance, one.covariance + np.triu(np.ones((6, 6)), 1)):
        np.savez(path, mu=one.mean, sigma=odd)
        with pytest.raises(InputError, match="expected a covariance"):
            of_published_npz(path)
    np.savez(path, mu=one.mean, sigma=one.covariance.astype(np.float32))
    assert frechet_distance(of_published_npz(path)[0], one) < 1e-6
    np.savez(path, arr_0=np.zeros(4))
    with pytest.raises(InputError, match="the arrays mu and sigma; it has not both"):
        of_published_npz(path)
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="no intact"):
        of_published_npz(path)


def test_a_set_of_one_picture_many_times_has_a_distance():
    """Nothing varies, and the distance is that of the means and of the other's variances."""
    same, other = moments_of(torch.ones(20, 4)), moments_of(features(14, 50, 4))
    expected = np.square(1 - other.mean).sum() + np.trace(other.covariance)
    assert frechet_distance(same, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(same, same) == 0


def test_the_pictures_beside_published_statistics_are_not_held(tmp_path):
    one, path = moments_of(features(15, 30, 6)), tmp_path / "VIRTUAL.npz"
    pictures = np.zeros((100, 256, 256, 3), np.uint8)
    np.savez(path, mu=one.mean, sigma=one.covariance, arr_0=pictures)
    tracemalloc.start()
    of_published_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pictures.nbytes / 4
