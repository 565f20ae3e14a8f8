import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT

from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.datasets.pictures import SomePictures
from m2kit.training.evaluation import tokenizer as measures
from m2kit.training.evaluation.tokenizer import codebook_of_crops, measured_of, psnr_of_crops


def test_of_a_large_set_pictures_that_are_evenly_spread_stand_for_all(monkeypatch):
    tokenizer = model_from_checkpoint(read_checkpoint(DIGITS_CHECKPOINT)).tokenizer
    whole, cut = DIGITS.load().train, Cut((32, 32))
    some, few = (SomePictures(whole, np.arange(*ends)) for ends in ((0, 12), (0, 12, 4)))
    expected = psnr_of_crops(tokenizer, Crops(few, cut))
    codes = codebook_of_crops(tokenizer, Crops(few, cut))
    assert psnr_of_crops(tokenizer, Crops(some, cut)) != expected
    monkeypatch.setattr(measures, "_MOST_MEASURED", 3)
    assert psnr_of_crops(tokenizer, Crops(some, cut)) == pytest.approx(expected, abs=1e-3)
    assert codebook_of_crops(tokenizer, Crops(some, cut)) == codes


def test_all_of_a_small_set_are_measured():
    assert measured_of(7).tolist() == [*range(7)]
    chosen = measured_of(250_000)
    assert len(set(chosen.tolist())) == 100_000
    assert (chosen[0], chosen[-1]) == (0, 249_997)
