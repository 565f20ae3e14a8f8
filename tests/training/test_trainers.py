"""Short, real trainings: what they leave behind, and that a killed one can go on."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT, picture

import m2kit
from m2kit.cli import cli
from m2kit.errors import InputError, M2KitError, SpecError
from m2kit.runtime.engine import Engine
from m2kit.training.ar_trainer import ARModule, settings_for, token_nats, train_ar
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.digits import LabelledImages, digits, features, warped
from m2kit.training.evaluation import codebook_usage, evaluate_digits, share_of_copies
from m2kit.training.loop import (
    AveragedModule,
    EpochShuffle,
    fit,
    in_order,
    load_best,
    open_run,
    read_metrics,
    shuffled,
    warm_up_then_linear,
)
from m2kit.training.models.model import expected_shapes
from m2kit.training.tokenizer_trainer import TokenizerSettings, train_tokenizer
from m2kit.training.torch_backend import TorchBackend

AR_SETTINGS = {
    "width": 32, "heads": 2, "inter_layers": 1, "intra_layers": 1, "ffn_width": 32, "bits": (3, 5),
    "epochs": 3, "batch": 128, "learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.1,
    "class_dropout": 0.1, "ema_decay": 0.9, "versions": 1, "guidance": (2.0, 2.0), "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """The digits example's tokenizer as a file of its own."""
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    tensors = model_from_checkpoint(checkpoint).tokenizer.state_dict()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.pt"
    spec = {"tokenizer": checkpoint.spec.to_json()["tokenizer"], "transformer": None}
    notes = {"spec": spec, "training": {"ema_decay": 0.9}}
    write_tokenizer_checkpoint(path, tensors, tensors, ema_decay=0.9, notes=notes)
    return path


def test_a_tokenizer_run_leaves_an_official_checkpoint_curves_and_samples(tmp_path, monkeypatch):
    few = [LabelledImages(data.images[:128], data.labels[:128]) for data in digits()]
    monkeypatch.setattr("m2kit.training.tokenizer_trainer.digits", lambda: few)
    settings = TokenizerSettings(
        base_channels=32, channel_multipliers=(1, 1), blocks_per_level=1, code_bits=4, epochs=2,
        batch=32, learning_rate=1e-3, ema_decay=0.5, entropy_weight=0.1, entropy_temperature=0.01,
        commitment_weight=0.25, seed=0,
    )  # fmt: skip
    training = train_tokenizer(settings, tmp_path / "run", resume=False, progress=False)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1]["l1"] < rows[0]["l1"]
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
    assert checkpoint.training["codebook_usage"] == training["codebook_usage"] > 0
    with pytest.raises(InputError, match="already holds a training run; add --resume"):
        train_tokenizer(settings, tmp_path / "run", resume=False, progress=False)


def test_an_ar_file_carries_its_tokenizer_and_the_averaged_weights(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **AR_SETTINGS)
    training = train_ar(settings, tokenizer_file, tmp_path, resume=False, progress=False)
    checkpoint = read_checkpoint(tmp_path / "ar.pt")
    assert set(checkpoint.tensors()) == set(expected_shapes(checkpoint.spec))
    assert checkpoint.spec.transformer.grid == (4, 4)
    assert checkpoint.sampling["guidance"] == [2.0, 2.0]
    original = read_checkpoint(tokenizer_file).tensors()
    for name in original:
        assert torch.equal(checkpoint.tensors()[name], original[name]), name
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    name = "head.1.weight"
    stored = checkpoint.tensors()[f"transformer.{name}"]
    assert torch.equal(stored, best[f"ema.module.{name}"])
    assert not torch.equal(stored, best[f"net.{name}"])
    rows = read_metrics(tmp_path / "metrics.csv")
    chosen = min(range(3), key=lambda epoch: rows[epoch]["held_out_bits"])
    assert training["chosen_epoch"] == chosen + 1
    assert training["held_out_bits_per_token"] == pytest.approx(
        rows[chosen]["held_out_bits"], abs=1e-3
    )
    assert rows[0]["train_bits"] == pytest.approx(8, abs=0.5)  # 8 bits a token, untrained


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **AR_SETTINGS)
    train_ar(settings, tokenizer_file, tmp_path / "whole", resume=False, progress=False)
    script = (
        "from pathlib import Path\n"
        "from m2kit.training.ar_trainer import ARSettings, train_ar\n"
        f"train_ar({settings!r}, Path({str(tokenizer_file)!r}), Path('killed'), "
        "resume=False, progress=False)"
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
    train_ar(settings, tokenizer_file, tmp_path / "killed", resume=True, progress=False)
    whole, resumed = (
        torch.load(tmp_path / name / "ar.pt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    )
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    for name in ("whole", "killed"):
        assert len(read_metrics(tmp_path / name / "metrics.csv")) == AR_SETTINGS["epochs"]


def test_a_run_is_resumed_only_when_asked_and_with_its_own_settings(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **AR_SETTINGS)
    with pytest.raises(InputError, match="no run to resume"):
        open_run(tmp_path / "run", settings, resume=True)
    assert open_run(tmp_path / "run", settings, resume=False) is None
    assert open_run(tmp_path / "run", settings, resume=True) is None  # killed before one epoch
    with pytest.raises(InputError, match="add --resume"):
        open_run(tmp_path / "run", settings, resume=False)
    with pytest.raises(InputError, match=r"seed 3 \(now 4\)"):
        open_run(tmp_path / "run", replace(settings, seed=4), resume=True)


def test_bits_must_fit_the_tokenizer(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **{**AR_SETTINGS, "bits": (3, 4)})
    with pytest.raises(SpecError, match="must sum to the tokenizer's 8 code bits"):
        train_ar(settings, tokenizer_file, tmp_path / "run", resume=False, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="no such tokenizer file"):
        settings_for(tmp_path / "none.pt", **AR_SETTINGS)


def test_class_dropout_trains_the_unconditional_class(tokenizer_file):
    settings = settings_for(tokenizer_file, **{**AR_SETTINGS, "class_dropout": 1.0})
    module = ARModule(settings, settings.spec((4, 4)), steps=1)
    module.log = lambda *_, **__: None
    classes, versions = torch.arange(10), torch.zeros(10, 1, 16, 2, dtype=torch.int64)
    module.training_step((classes, versions), 0).backward()
    gradient = module.net.class_emb.embedding_table.weight.grad.abs().sum(1)
    assert (gradient[:10] == 0).all()
    assert gradient[10] > 0


def test_bits_per_token_of_uniform_logits_are_the_code_bits():
    logits = [torch.zeros(2, 3, 8), torch.zeros(2, 3, 32)]
    tokens = torch.zeros(2, 3, 2, dtype=torch.int64)
    assert token_nats(logits, tokens).item() == pytest.approx(8 * np.log(2))


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warm_up_then_linear(optimizer, warm_up=4, steps=14, floor=0.1)
    rates = []
    for _ in range(16):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx(0.1)
    assert rates[15] == pytest.approx(0.1)


def test_every_epoch_has_its_own_order_that_a_resume_repeats():
    order = EpochShuffle(50, seed=1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    again = EpochShuffle(50, seed=1)
    again.set_epoch(1)
    assert list(again) == second


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="--batch 9 is more than the 8 training images"):
        shuffled(torch.zeros(8), batch=9, seed=0)


def test_digits_are_split_once_and_by_class():
    train, held_out = digits()
    assert (len(train.labels), len(held_out.labels)) == (1437, 360)
    assert held_out.labels.bincount().min() >= 34
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.images.min() == -1
    known = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in known for image in held_out.images)
    assert features(train.images[:2].numpy()).shape == (2, 64)


def test_warping_moves_but_keeps_an_image():
    train, _ = digits()
    moved = warped(train.images[:50], torch.Generator().manual_seed(0))
    assert moved.shape == (50, 3, 32, 32)
    assert moved.min() >= -1
    assert moved.max() <= 1
    change = (moved - train.images[:50]).abs().mean()
    other = (train.images[:50] - train.images[50:100]).abs().mean()
    assert 0.02 < change < 0.7 * other


def test_copies_and_codebook_usage_are_counted():
    training = np.zeros((2, 1, 2, 2), np.int64)
    training[1, 0, 0] = (1, 1)
    tokens = np.stack([training[1], training[1] + 1])
    assert share_of_copies(tokens, training) == 0.5
    assert codebook_usage(training, (1, 1)) == 0.5  # codes 0 and 3 of four


def test_the_shipped_example_draws_digits_that_are_not_copies(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        report, images = evaluate_digits(engine, per_class=20, seed=0)
    assert images.shape == (200, 3, 32, 32)
    assert report.real_recognised > 0.97
    assert report.recognised >= 0.95
    assert report.copies < 0.1
    assert report.codebook_usage == 1.0


def test_the_shipped_example_says_how_it_was_made():
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    training = checkpoint.training
    assert json.loads(json.dumps(training))["seed"] == 0
    assert training["training_bits_per_token"] < training["held_out_bits_per_token"] < 3
    assert DIGITS_CHECKPOINT.stat().st_size < 10_000_000
    model = model_from_checkpoint(checkpoint)
    _, held_out = digits()
    engine = Engine(model.spec, TorchBackend(model))
    tokens = torch.from_numpy(engine.encode(held_out.images.numpy())).flatten(1, 2)
    with torch.no_grad():
        nats = token_nats(model.transformer(held_out.labels, tokens), tokens)
    bits = nats.item() / np.log(2)
    assert bits == pytest.approx(training["held_out_bits_per_token"], abs=0.01)


class ScriptedModule(AveragedModule):
    """Logs a scripted held-out measure per epoch."""

    measures = (5.0, 1.0, 3.0, 2.0)

    def __init__(self):
        super().__init__(torch.nn.Linear(2, 1), 0.0, seed=0)

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def validation_step(self, *_):
        self.log("measure", torch.tensor(self.measures[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 1e-3)


def test_the_best_model_of_before_a_resume_is_kept(tmp_path):
    data = torch.arange(16.0).view(8, 2)
    for epochs in (2, 4):
        resume = tmp_path / "resume.ckpt"
        fit(
            ScriptedModule(), shuffled(data, batch=4, seed=0), in_order(data), epochs=epochs,
            folder=tmp_path, resume_from=resume if resume.exists() else None,
            choose_by="measure", progress=False,
        )  # fmt: skip
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1
    assert [row["measure"] for row in read_metrics(tmp_path / "metrics.csv")] == [5, 1, 3, 2]


@pytest.mark.parametrize("bits", [(8,), (2, 2, 4)], ids=str)
def test_an_ar_model_of_any_number_of_sub_tokens_trains_and_samples(tmp_path, tokenizer_file, bits):
    values = {"bits": bits, "guidance": (2.0,) * len(bits), "epochs": 1}
    settings = settings_for(tokenizer_file, **AR_SETTINGS | values)
    train_ar(settings, tokenizer_file, tmp_path, resume=False, progress=False)
    checkpoint = read_checkpoint(tmp_path / "ar.pt")
    assert checkpoint.spec.bits == bits
    assert checkpoint.sampling["guidance"] == [2.0] * len(bits)
    assert picture(tmp_path / "samples.png").std() > 1


def test_a_mistake_in_the_settings_leaves_no_run_behind(tmp_path, tokenizer_file):
    for change in ({"heads": 3}, {"batch": 2000}, {"bits": (9,)}):
        settings = settings_for(tokenizer_file, **AR_SETTINGS | change)
        with pytest.raises(M2KitError):
            train_ar(settings, tokenizer_file, tmp_path / "run", resume=False, progress=False)
        assert not (tmp_path / "run").exists()


def test_a_diverging_training_is_an_error(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **AR_SETTINGS | {"learning_rate": 1e30})
    with pytest.raises(M2KitError, match=r"diverged in epoch \d.*lower --learning-rate"):
        train_ar(settings, tokenizer_file, tmp_path, resume=False, progress=False)
    assert not (tmp_path / "ar.pt").exists()


def test_damaged_run_files_are_named(tmp_path, tokenizer_file):
    settings = settings_for(tokenizer_file, **AR_SETTINGS)
    open_run(tmp_path, settings, resume=False)
    (tmp_path / "resume.ckpt").write_bytes(b"half")
    with pytest.raises(InputError, match=r"resume\.ckpt is damaged"):
        open_run(tmp_path, settings, resume=True)
    (tmp_path / "settings.json").write_text("")
    with pytest.raises(InputError, match=r"settings\.json is damaged"):
        open_run(tmp_path, settings, resume=True)
    with pytest.raises(InputError, match=r"best\.ckpt is missing or damaged"):
        load_best(tmp_path)


def run_cli(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_of_the_example_train_and_refuse_what_cannot_be(tmp_path, monkeypatch):
    few = [LabelledImages(data.images[:64], data.labels[:64]) for data in digits()]
    for trainer in ("tokenizer_trainer", "ar_trainer"):
        monkeypatch.setattr(f"m2kit.training.{trainer}.digits", lambda: few)
    run = tmp_path / "tokenizer"
    code, _, err = run_cli("train", "tokenizer", "--channel-multipliers", "1" + 6 * ",1", "-o", run)
    assert (code, run.exists()) == (1, False), err
    assert "must leave two whole latent positions" in err
    code, out, err = run_cli("train", "tokenizer", "--epochs", 1, "--no-progress", "-o", run)
    assert code == 0, err
    assert "codebook usage" in out
    code, out, err = run_cli(
        "train",
        "ar",
        "--tokenizer",
        run / "tokenizer.pt",
        "--epochs",
        1,
        "--versions",
        2,
        "--no-progress",
        "-o",
        tmp_path / "ar",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["guidance"] == [2.0, 2.0]
    for option, value in (("--dropout", 1.5), ("--ema-decay", 1), ("--seed", 2**40)):
        code, _, err = run_cli("train", "ar", option, value)
        assert code == 2
        assert "is not in the range" in err


def test_the_shipped_example_was_trained_with_the_commands_defaults():
    training = read_checkpoint(DIGITS_CHECKPOINT).training
    for parameter in cli.commands["train"].commands["ar"].params:
        if parameter.name in set(training) - {"guidance", "data"}:
            default = parameter.default
            if parameter.name == "bits":
                default = [int(part) for part in default.split(",")]
            assert training[parameter.name] == default, parameter.name
    assert training["guidance"] == [2.0, 2.0]
