"""A data set of one's own is this file alone: one record and one call of `register`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from m2kit.cli import cli
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.datasets.pictures import ArrayPictures, Collection
from m2kit.training.datasets.table import DATASETS, register
from m2kit.training.evaluation.report import evaluate
from m2kit.training.torch_backend import TorchBackend

PERIODS = (4, 8, 16)  # pixels, one per class


def stripes(count, seed):
    """Images of vertical stripes, 16 x 16, of which each class has its own period."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(PERIODS)
    turns = np.arange(16) / np.array(PERIODS)[labels][:, None] + random.random((count, 1))
    rows = np.sin(2 * np.pi * turns).astype(np.float32)  # (n, 16)
    images = np.broadcast_to(rows[:, None, None], (count, 3, 16, 16)).copy()
    pixels = ((images + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return ArrayPictures(pixels, labels, [str(index) for index in range(count)])


def judge(images, labels):
    """The class whose frequency is the strongest."""
    assert len(images) == len(labels) == 96

    def recognise(images):
        strength = np.abs(np.fft.rfft(images.mean(axis=(1, 2)), axis=1))
        return strength[:, [16 // period for period in PERIODS]].argmax(axis=1)

    return recognise


TOY = DataSet(
    name="toy",
    title="vertical stripes",
    loader=lambda: Collection(stripes(96, 0), stripes(30, 1), ("4", "8", "16"), size=16),
    judge=judge,
)


@pytest.fixture(scope="module", autouse=True)
def toy():
    register(TOY)
    yield
    del DATASETS[TOY.name]


def train(*arguments):
    result = CliRunner().invoke(cli, ["train", *map(str, arguments), "--no-progress", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_data_set_of_ones_own_is_trained_on_and_judged(tmp_path):
    tokenizer, ar = tmp_path / "tokenizer", tmp_path / "ar"
    noted = train(
        "tokenizer", "--data", "toy", "--epochs", 1, "--channel-multipliers", "1,1",
        "--code-bits", 4, "-o", tokenizer,
    )  # fmt: skip
    assert noted["data"] == "vertical stripes"
    train(
        "ar", "--data", "toy", "--epochs", 1, "--batch", 32, "--width", 32, "--bits", "2,2",
        "--versions", 2, "--tokenizer", tokenizer / "tokenizer.pt", "-o", ar,
    )  # fmt: skip
    for folder in (tokenizer, ar):
        assert json.loads((folder / "settings.json").read_text())["data"] == "toy"
    checkpoint = read_checkpoint(ar / "ar.pt")
    assert checkpoint.training["data"] == "vertical stripes"
    assert checkpoint.spec.transformer.classes == 3
    assert checkpoint.spec.transformer.grid == (8, 8)

    model = model_from_checkpoint(checkpoint)
    with Engine(model.spec, TorchBackend(model), defaults=checkpoint.sampling) as engine:
        report, images = evaluate(engine, TOY, per_class=2, seed=0)
    assert images.shape == (6, 3, 16, 16)
    assert report.images == 6
    assert report.real_recognised == 1
    assert 0 <= report.recognised <= 1
    assert 0 < report.codebook_usage <= 1
