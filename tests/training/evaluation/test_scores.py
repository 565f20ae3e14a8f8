import contextlib
import io
import sys

import numpy as np
import prdc
import pytest
import torch
from doubles.random_lpips import random_lpips
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.kid import KernelInceptionDistance

from m2kit.errors import BackendError, InputError, Unavailable
from m2kit.runtime.images import images_from_pixels, uint8_from_images
from m2kit.runtime.images import psnr as psnr_of_set
from m2kit.training.evaluation.scores import (
    kid,
    lpips,
    lpips_network,
    precision_recall,
    psnr,
    ssim,
)
from m2kit.training.models.perceptual import HEADS, VGG


class Given(torch.nn.Module):
    num_features = 16

    def forward(self, x):
        return x


def pictures(seed, noise, shape=(3, 32, 48, 3)):
    """Smooth pictures, and the same with noise."""
    random = np.random.default_rng(seed)
    waves = np.add.outer(np.sin(np.arange(shape[1]) / 5), np.cos(np.arange(shape[2]) / 7))
    clean = 127 + 50 * waves[:, :, None] + random.uniform(-20, 20, (shape[0], 1, 1, 3))
    noisy = clean + noise * random.standard_normal(shape)
    return [np.clip(part, 0, 255).astype(np.uint8) for part in (clean, noisy)]


def features(seed, count, dimensions=16, shift=0.0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal((count, dimensions)).astype(np.float32) + shift)


@pytest.mark.parametrize("noise", [1, 10, 100])
def test_psnr_and_ssim_are_scikit_images(noise):
    images, others = pictures(noise, noise)
    expected = [peak_signal_noise_ratio(*pair) for pair in zip(images, others, strict=True)]
    assert psnr(images, others) == pytest.approx(expected, abs=1e-5)  # a float32 range
    expected = [
        structural_similarity(*pair, channel_axis=2) for pair in zip(images, others, strict=True)
    ]
    assert ssim(images, others) == pytest.approx(expected, abs=1e-9)


def test_psnr_is_what_the_runtime_tells_of_a_set():
    images, others = pictures(0, 5)
    floats = [images_from_pixels(part) for part in (images, others)]
    truncated = [uint8_from_images(part) for part in floats]
    assert psnr(*truncated).mean() == pytest.approx(psnr_of_set(*floats), abs=1e-5)
    assert psnr(images, images).tolist() == pytest.approx([10 * np.log10(255**2 / 1e-10)] * 3)
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    assert psnr(images[:1], others[:1]).shape == (1,)


def test_pictures_that_cannot_be_compared_are_refused():
    images, others = pictures(0, 5)
    with pytest.raises(InputError, match="expected two"):
        psnr(images, others[:2])
    with pytest.raises(InputError, match="float64"):
        ssim(images / 255, others / 255)
    with pytest.raises(Unavailable, match="7 x 7 pixels"):
        ssim(images[:, :6], others[:, :6])


@pytest.fixture
def perceptual_files(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = random_lpips(0)[:2]
    for part, file in zip(weights, (VGG, HEADS), strict=True):
        torch.save({n: t.float() for n, t in part.items()}, tmp_path / "checkpoints" / file.name)


def test_lpips_is_the_networks_distance(perceptual_files):
    network = lpips_network()
    *_, images, others = random_lpips(0)
    found = lpips(network, images.float(), others.float())
    assert found.dtype == np.float64
    assert found.tolist() == network(images.float(), others.float()).tolist()
    with pytest.raises(InputError, match=r"\[-1, 1\]"):
        lpips(network, images.float() * 2, others.float())
    with pytest.raises(Unavailable, match="16 x 16 pixels"):
        lpips(network, images.float()[..., :8], others.float()[..., :8])


def test_lpips_without_its_files_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        Unavailable, match=rf"{VGG.name} is missing: .*{HEADS.name} is missing"
    ) as e:
        lpips_network()
    assert "\n" not in str(e.value)


BUFFERS = pytest.mark.filterwarnings("ignore:.*will save all extracted features")


@BUFFERS
def test_kid_of_whole_sets_is_torchmetrics():
    real, generated = features(0, 60), features(1, 60, shift=0.1)
    metric = KernelInceptionDistance(Given(), subsets=3, subset_size=60)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    found = kid(real, generated, seed=0, subsets=3)
    assert found == pytest.approx(metric.compute()[0].item(), rel=1e-4)


def test_kid_is_unbiased_and_repeats_by_its_seed():
    sets = features(2, 400), features(3, 300)
    found = kid(*sets, seed=5, subsets=200, most=50)
    assert abs(found) < 0.03  # one distribution: 0 in expectation
    assert kid(*sets, seed=5, subsets=200, most=50) == found
    assert kid(*sets, seed=6, subsets=200, most=50) != found
    assert kid(sets[0], sets[1] + 0.5, seed=5) > 0.3
    with pytest.raises(Unavailable, match="two samples or more of each set, found 400 and 1"):
        kid(sets[0], sets[1][:1], seed=0)


@pytest.mark.parametrize(("k", "shift"), [(3, 0.0), (3, 0.5), (5, 0.5), (1, 1.0)])
def test_precision_and_recall_are_the_prdc_packages(k, shift):
    real, generated = features(6, 700), features(7, 500, shift=shift) * 0.8
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(real.double().numpy(), generated.double().numpy(), k)
    found = precision_recall(real, generated, k=k)
    assert (found.precision, found.recall) == (expected["precision"], expected["recall"])
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_precision_and_recall_know_equal_rows():
    real = features(8, 50, 64) + 100
    assert precision_recall(real, real).precision == 1
    far = real + 1000
    found = precision_recall(real, far)
    assert (found.precision, found.recall) == (0, 0)
    fours = real[:10].repeat(4, 1)  # neighbours at no distance: nothing is nearer than that
    assert precision_recall(fours, real).precision == 0


def test_sets_that_precision_and_recall_do_not_take_are_refused():
    real = features(9, 20)
    with pytest.raises(Unavailable, match="k = 3 need 4 samples or more of each set"):
        precision_recall(real, real[:3])
    with pytest.raises(InputError, match="10,000 rows at most"):
        precision_recall(torch.zeros(10_001, 2), torch.zeros(10, 2))
    with pytest.raises(InputError, match="of one network"):
        precision_recall(real, real[:, :3])
    with pytest.raises(InputError, match="not finite"):
        precision_recall(real, real * torch.inf)


def test_torchmetrics_beside_a_torchvision_that_does_not_load_is_one_line(tmp_path, monkeypatch):
    package = tmp_path / "torchmetrics"
    package.mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (package / "__init__.py").write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    said = "KID cannot load the package torchmetrics.*: operator torchvision::nms does not exist"
    with pytest.raises(BackendError, match=said):
        kid(features(0, 20), features(1, 20), seed=0)
