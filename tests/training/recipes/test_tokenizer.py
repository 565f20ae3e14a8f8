import csv

import pytest
import torch
from conftest import picture

from m2kit.errors import InputError
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes
from m2kit.training.recipes.tokenizer import TokenizerSettings, train_tokenizer


def test_a_tokenizer_run_leaves_an_official_checkpoint_curves_and_samples(tmp_path, few):
    settings = TokenizerSettings(
        data=few.name, base_channels=32, channel_multipliers=(1, 1), blocks_per_level=1,
        code_bits=4, epochs=2,
        batch=32, learning_rate=1e-3, ema_decay=0.5, entropy_weight=0.1, entropy_temperature=0.01,
        commitment_weight=0.25, seed=0,
    )  # fmt: skip
    training = train_tokenizer(settings, tmp_path / "run", resume=False)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["held_out_l1"]]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert float(rows[1]["l1"]) < float(rows[0]["l1"])
    for name in ("curves.png", "samples.png"):
        assert picture(tmp_path / "run" / name).std() > 1
    file = torch.load(tmp_path / "run" / "tokenizer.pt", weights_only=True)
    state = file["state_dict"]
    checkpoint = read_checkpoint(tmp_path / "run" / "tokenizer.pt")
    names = set(expected_shapes(checkpoint.spec))
    averaged = {"model_ema." + name.replace(".", "") for name in names}
    assert set(state) == names | averaged | {"model_ema.decay", "model_ema.num_updates"}
    name = "decoder.conv_out.weight"
    assert not torch.equal(state[name], state["model_ema.decoderconv_outweight"])
    assert checkpoint.training["codebook_usage"] == training.codebook_usage > 0
    with pytest.raises(InputError, match="already holds a training run; resume it"):
        train_tokenizer(settings, tmp_path / "run", resume=False)
