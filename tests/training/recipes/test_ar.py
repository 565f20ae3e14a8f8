"""Short, real trainings: what they leave behind, and that a killed one can go on."""

import subprocess
import sys
import time
from operator import itemgetter
from types import SimpleNamespace

import pytest
import torch
from conftest import picture
from doubles import scaled_runs

from m2kit.config import ModelSpec
from m2kit.errors import InputError, M2KitError, SpecError
from m2kit.progress import silent
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.models.model import expected_shapes
from m2kit.training.recipes import ar
from m2kit.training.recipes.ar import ARRecipe, train_ar
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.metrics import read_metrics
from m2kit.training.recipes.settings import settings_for

PANELS = {
    "bits": ["train_bits", "held_out_bits", "held_out_bits_1", "held_out_bits_2"],
    "others": ["transformer_gradient_norm", "learning_rate"],
}


def test_an_ar_file_carries_its_tokenizer_and_the_averaged_weights(
    tmp_path, tokenizer_file, ar_settings, few, uncurved
):
    settings = ar_settings(data="few", batch=32)
    training = train_ar(settings, tokenizer_file, tmp_path, resume=False)
    checkpoint = read_checkpoint(tmp_path / "ar.pt")
    tensors = checkpoint.tensors()
    assert set(tensors) == set(expected_shapes(checkpoint.spec))
    assert checkpoint.spec.transformer.grid == (4, 4)
    assert checkpoint.sampling.guidance == (2.0, 2.0)
    assert checkpoint.training["classes"] == [str(digit) for digit in range(10)]
    original = read_checkpoint(tokenizer_file).tensors()
    for name in original:
        assert torch.equal(tensors[name], original[name]), name
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["weights"]["transformer"]
    name = "head.1.weight"
    stored = tensors[f"transformer.{name}"]
    assert torch.equal(stored, best["average"][name])
    assert not torch.equal(stored, best["network"][name])
    rows = read_metrics(tmp_path / "metrics.csv", PANELS)
    chosen = min((row for row in rows if "held_out_bits" in row), key=itemgetter("held_out_bits"))
    assert training.chosen_step == chosen["step"]
    assert training.held_out_bits_per_token == pytest.approx(chosen["held_out_bits"], abs=1e-3)
    parts = chosen["held_out_bits_1"] + chosen["held_out_bits_2"]
    assert parts == pytest.approx(chosen["held_out_bits"])
    assert rows[0]["train_bits"] == pytest.approx(8, abs=0.5)  # 8 bits a token, untrained


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    tmp_path, tokenizer_file, ar_settings, uncurved
):
    scaled_runs.pictures(tmp_path / "pictures.npz", count=128)
    settings = ar_settings(data=str(tmp_path / "pictures.npz"), batch=16, epochs=8)
    train_ar(settings, tokenizer_file, tmp_path / "whole", resume=False)
    script = (
        "from pathlib import Path\n"
        "from m2kit.training.recipes.ar import train_ar\n"
        "from m2kit.training.recipes.settings import ARSettings\n"
        f"train_ar({settings!r}, Path({str(tokenizer_file)!r}), Path('killed'), "
        "resume=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "resume.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "ar.pt").exists()
    train_ar(settings, tokenizer_file, tmp_path / "killed", resume=True)
    whole, resumed = (
        torch.load(tmp_path / name / "ar.pt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    )
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_a_run_that_was_given_more_epochs_is_the_run_that_was_planned_so(
    tmp_path, tokenizer_file, ar_settings, few
):
    def train(name, resume, **changes):
        settings = ar_settings(data="few", batch=32, **changes)
        return train_ar(settings, tokenizer_file, tmp_path / name, resume=resume)

    train("extended", False, epochs=2)
    short = (tmp_path / "extended" / "metrics.csv").read_text()
    extended = train("extended", True, epochs=4)
    assert extended == train("planned", False, epochs=4, schedule_length=2)
    for name in ("settings.json", "metrics.csv", "ar.pt", "samples.png", "curves.png"):
        files = [(tmp_path / run / name).read_bytes() for run in ("extended", "planned")]
        assert files[0] == files[1], name
    assert (tmp_path / "extended" / "metrics.csv").read_text().startswith(short)
    page = (tmp_path / "extended" / "report.html").read_text()
    for part in (
        "a row for each of 0, 1, 2",
        "reconstructions",
        str(extended.held_out_bits_per_token),
    ):
        assert part in page
    notes = read_checkpoint(tmp_path / "extended" / "ar.pt").training
    assert (notes["epochs"], notes["schedule_length"]) == (4, 2)
    train("plain", False, epochs=4)
    plain = (tmp_path / "plain" / "metrics.csv").read_text()
    assert plain.splitlines()[1] != short.splitlines()[1]  # another schedule from the start


def test_bits_must_fit_the_tokenizer(tmp_path, tokenizer_file, ar_settings):
    settings = ar_settings(bits=(3, 4))
    with pytest.raises(SpecError, match="must sum to the tokenizer's 8 code bits"):
        train_ar(settings, tokenizer_file, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="no such tokenizer file"):
        settings_for(tmp_path / "none.pt")


def test_class_dropout_trains_the_unconditional_class(ar_settings, tokenizer_file):
    settings = ar_settings(class_dropout=1.0)
    tokenizer = model_from_checkpoint(read_checkpoint(tokenizer_file)).tokenizer
    spec = ModelSpec(tokenizer.spec, settings.spec((4, 4), classes=10))
    recipe = ARRecipe(settings, spec, tokenizer)
    classes, tokens = torch.arange(10), torch.zeros(10, 16, 2, dtype=torch.int64)
    recipe.transformer.losses(0, (tokens, classes))["loss"].backward()
    gradient = recipe.transformer.network.class_emb.embedding_table.weight.grad.abs().sum(1)
    assert (gradient[:10] == 0).all()
    assert gradient[10] > 0


@pytest.mark.parametrize("bits", [(8,), (2, 2, 4)], ids=str)
def test_an_ar_model_of_any_number_of_sub_tokens_trains_and_samples(
    tmp_path, tokenizer_file, ar_settings, few, uncurved, bits
):
    values = {"data": "few", "bits": bits, "guidance": (2.0,) * len(bits), "epochs": 1}
    settings = ar_settings(**values)
    train_ar(settings, tokenizer_file, tmp_path, resume=False)
    checkpoint = read_checkpoint(tmp_path / "ar.pt")
    assert checkpoint.spec.vocabularies == tuple(2**b for b in bits)
    assert checkpoint.sampling.guidance == (2.0,) * len(bits)
    assert picture(tmp_path / "samples.png").std() > 1


def test_a_mistake_in_the_settings_leaves_no_run_behind(tmp_path, tokenizer_file, ar_settings):
    for change in ({"heads": 3}, {"batch": 2000}, {"bits": (3, 6)}):
        with pytest.raises(M2KitError):
            settings = ar_settings(**change)
            train_ar(settings, tokenizer_file, tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()


def test_a_diverging_training_is_an_error(tmp_path, tokenizer_file, ar_settings, few):
    settings = ar_settings(data="few", batch=32, learning_rate=1e6)
    with pytest.raises(M2KitError, match=r"diverged in step \d.*lower learning rate"):
        train_ar(settings, tokenizer_file, tmp_path, resume=False)
    assert not (tmp_path / "ar.pt").exists()


def test_only_the_first_process_shows_how_far_a_cache_is_checked(
    tmp_path, tokenizer_file, ar_settings, monkeypatch
):
    other = SimpleNamespace(
        is_global_zero=False, global_rank=0, world_size=1, strategy=None, launch=lambda: None,
        broadcast=lambda value: value,
    )  # fmt: skip
    monkeypatch.setattr(Machine, "fabric", lambda _: other)

    begins = []

    def source(_settings, _versions, _checkpoint, begin):
        begins.append(begin)
        raise InputError("which the first process tells")

    monkeypatch.setattr(ar, "token_source", source)
    with pytest.raises(SystemExit):
        train_ar(ar_settings(), tokenizer_file, tmp_path, resume=False, begin=lambda *_: print)
    assert begins == [silent]
