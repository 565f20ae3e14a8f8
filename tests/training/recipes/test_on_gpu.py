"""Training on a real GPU: `make test-gpu`."""

import csv

import pytest
import torch

from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.settings import TokenizerSettings
from m2kit.training.recipes.tokenizer import train_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.usefixtures("uncurved"),
]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def tokenizer_settings(data, **changes):
    values = {
        "data": data, "base_channels": 32, "channel_multipliers": (1, 1), "blocks_per_level": 1,
        "code_bits": 4, "epochs": 3, "batch": 32, "learning_rate": 1e-3, "ema_decay": 0.5,
        "entropy_weight": 0.1, "entropy_temperature": 0.01, "commitment_weight": 0.25, "seed": 0,
        "adversary": "blur", "adversary_width": 32, "adversary_weight": 0.1, "lecam_weight": 0.01,
        "log_every": 1,
    }  # fmt: skip
    return TokenizerSettings(**values | changes)


@pytest.fixture
def full_float32():
    """No TF32, so that a GPU's numbers may be compared with a CPU's."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_a_tokenizer_learns_the_same_as_on_a_cpu(tmp_path, few, full_float32):
    settings = tokenizer_settings(few.name)
    for name in ("cpu", "cuda"):
        machine = Machine(accelerator=name, devices=1)
        train_tokenizer(settings, tmp_path / name, resume=False, machine=machine)
    pairs = list(zip(rows(tmp_path / "cpu"), rows(tmp_path / "cuda"), strict=True))
    cpu, gpu = pairs[0]  # afterwards roundings grow apart, as signs of codes flip
    for name in ("l1", "entropy_per_position", "commitment", "hinge", "generator_loss"):
        assert float(gpu[name]) == pytest.approx(float(cpu[name]), rel=1e-3, abs=1e-5), name
    cpu, gpu = pairs[-1]
    assert float(gpu["held_out_l1"]) == pytest.approx(float(cpu["held_out_l1"]), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"compile": True}, {"accumulate": 2}],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_a_tokenizer_learns_in_every_way_a_gpu_offers(tmp_path, few, changes):
    machine = Machine(accelerator="cuda", devices=1, **changes)
    train_tokenizer(tokenizer_settings(few.name), tmp_path / "run", resume=False, machine=machine)
    found = [float(row["l1"]) for row in rows(tmp_path / "run")]
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_video_tokenizer_begins_as_on_a_cpu_and_learns(tmp_path, films, full_float32, precision):
    settings = tokenizer_settings(
        str(films), frames=5, size=32, channel_multipliers=(2, 2), batch=4, epochs=10,
        adversary="patch", adversary_width=8,
    )  # fmt: skip
    for name, chosen in (("cpu", "fp32"), ("cuda", precision)):
        machine = Machine(accelerator=name, devices=1, precision=chosen)
        train_tokenizer(settings, tmp_path / name, resume=False, machine=machine)
    cpu, gpu = rows(tmp_path / "cpu"), rows(tmp_path / "cuda")
    near = 1e-3 if precision == "fp32" else 0.05
    for name in ("l1", "commitment", "hinge", "generator_loss"):
        assert float(gpu[0][name]) == pytest.approx(float(cpu[0][name]), rel=near), name
    assert float(gpu[-1]["l1"]) < 0.7 * float(gpu[0]["l1"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_ar_model_learns_on_a_gpu_and_goes_on_after_a_stop(
    tmp_path, tokenizer_file, ar_settings, precision
):
    machine = Machine(accelerator="cuda", devices=1, precision=precision)
    run = tmp_path / "run"
    train_ar(ar_settings(epochs=2), tokenizer_file, run, resume=False, machine=machine)
    before = len(rows(run))
    train_ar(ar_settings(epochs=3), tokenizer_file, run, resume=True, machine=machine)
    assert len(rows(run)) > before
    measured = [float(row["held_out_bits"]) for row in rows(run) if row["held_out_bits"]]
    assert measured[-1] < measured[0]


def test_a_sharded_run_of_one_gpu_learns(tmp_path, few):
    machine = Machine(accelerator="cuda", devices=1, strategy="sharded")
    train_tokenizer(tokenizer_settings(few.name), tmp_path / "run", resume=False, machine=machine)
    found = [float(row["l1"]) for row in rows(tmp_path / "run")]
    assert found[-1] < 0.7 * found[0]
