import csv

import pytest
import torch
from conftest import picture

from m2kit.errors import InputError
from m2kit.runtime.codebook import report_of_tokens
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes
from m2kit.training.recipes.settings import TokenizerSettings
from m2kit.training.recipes.tokenizer import TokenizerRecipe, train_tokenizer


def settings_of(data, **changes):
    values = {
        "data": data, "base_channels": 32, "channel_multipliers": (1, 1), "blocks_per_level": 1,
        "code_bits": 4, "epochs": 2, "batch": 32, "learning_rate": 1e-3, "ema_decay": 0.5,
        "entropy_weight": 0.1, "entropy_temperature": 0.01, "commitment_weight": 0.25, "seed": 0,
    }  # fmt: skip
    return TokenizerSettings(**values | changes)


def test_a_tokenizer_run_leaves_an_official_checkpoint_curves_and_samples(tmp_path, few):
    settings = settings_of(few.name)
    training = train_tokenizer(settings, tmp_path / "run", resume=False)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["held_out_l1"]]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert float(rows[1]["l1"]) < float(rows[0]["l1"])
    for row in rows:
        assert 1 / 16 <= float(row["held_out_codebook_usage"]) <= 1
        assert 1 <= float(row["held_out_perplexity"]) <= 16 * float(row["held_out_codebook_usage"])
    for name in ("curves.png", "samples.png"):
        assert picture(tmp_path / "run" / name).std() > 1
    page = (tmp_path / "run" / "report.html").read_text()
    for part in ("held-out pictures, a row of reconstructions", str(training.held_out_psnr_db)):
        assert part in page
    file = torch.load(tmp_path / "run" / "tokenizer.pt", weights_only=True)
    state = file["state_dict"]
    checkpoint = read_checkpoint(tmp_path / "run" / "tokenizer.pt")
    names = set(expected_shapes(checkpoint.spec))
    averaged = {"model_ema." + name.replace(".", "") for name in names}
    assert set(state) == names | averaged | {"model_ema.decay", "model_ema.num_updates"}
    name = "decoder.conv_out.weight"
    assert not torch.equal(state[name], state["model_ema.decoderconv_outweight"])
    assert checkpoint.training["codebook_usage"] == training.codebook_usage > 0
    assert checkpoint.training["codebook_perplexity"] == training.codebook_perplexity >= 1
    assert training.dead_bits == ()
    with pytest.raises(InputError, match="already holds a training run; resume it"):
        train_tokenizer(settings, tmp_path / "run", resume=False)


@torch.no_grad()
def test_a_measurement_counts_the_codes_of_all_processes_and_names_dead_bits():
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    first, second = (TokenizerRecipe(settings_of("x"), 128) for _ in range(2))  # two processes
    tokenizer = first.generator.averaged
    tokenizer.encoder.conv_out.weight[2] = 0
    tokenizer.encoder.conv_out.bias[2] = 1
    second.generator.averaged.load_state_dict(tokenizer.state_dict())
    tokens = tokenizer.tokens(tokenizer.codes(images), (16,)).numpy()
    report = report_of_tokens(tokens, (16,), "lsb")
    for _ in range(2):  # each measurement begins anew
        first.measure([images[:4]], 4)
        second.measure([images[[4, 5, 0, 1]]], 2)
        other = []
        second.summary(lambda count, other=other: other.append(count) or [count])
        found = first.summary(lambda count, other=other: [count, *other])
        assert found == {
            "held_out_codebook_usage": report.usage,
            "held_out_perplexity": report.perplexity,
        }
        assert first.remark == "; dead bits on held-out pictures: 2 (always +1)"
    tokenizer.encoder.conv_out.load_state_dict(
        first.generator.network.encoder.conv_out.state_dict()
    )
    first.measure([images], 6)
    first.summary(lambda count: [count])
    assert first.remark == ""
