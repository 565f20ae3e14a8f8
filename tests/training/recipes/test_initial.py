"""Training that starts from the weights of a checkpoint."""

from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN

from m2kit.errors import CheckpointError, InputError, TrainingInterrupted
from m2kit.families.image import ImageTokenizerSpec
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.datasets.dataset import latent_grid
from m2kit.training.recipes.initial import DISCRIMINATOR, load_discriminator, read_initial
from m2kit.training.recipes.loop import Run
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.settings import TokenizerSettings, digest
from m2kit.training.recipes.tokenizer import train_tokenizer

TINY = TokenizerSettings(
    data="few", base_channels=32, channel_multipliers=(1, 1), blocks_per_level=1, code_bits=4,
    epochs=1, steps=2, batch=8, learning_rate=1e-3, ema_decay=0.5, entropy_weight=0.1,
    entropy_temperature=0.01, commitment_weight=0.25, seed=0, log_every=1, validate_every=2,
    adversary="blur", adversary_width=32,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("uncurved")


def trained(folder, init=None, **changes):
    settings = replace(TINY, init_sha256=init and digest(init), **changes)
    train_tokenizer(settings, folder, resume=False, init=init)
    return folder


def tensors(folder, name="tokenizer.train.pt"):
    return read_file(folder / name, check=True).tensors


@pytest.fixture(scope="module")
def start(tmp_path_factory, few):
    """A run with an adversary; its training file."""
    return trained(tmp_path_factory.mktemp("start") / "run") / "tokenizer.train.pt"


def test_a_run_starts_from_a_files_averaged_weights_and_its_discriminator(tmp_path, start):
    told = tensors(start.parent)
    found = tensors(trained(tmp_path / "run", start, steps=1, learning_rate=1e-9))
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight"):
        average = told["model_ema." + name.replace(".", "")]
        torch.testing.assert_close(found[name], average, rtol=0, atol=1e-7)
        assert not torch.allclose(told[name], average, rtol=0, atol=1e-5)
    for name in (name for name in told if name.startswith(DISCRIMINATOR) and "weight" in name):
        torch.testing.assert_close(found[name], told[name], rtol=0, atol=1e-7)


def test_a_frozen_encoder_stays_to_the_bit_while_the_rest_learns(tmp_path, start):
    told = tensors(start.parent)
    found = tensors(trained(tmp_path / "run", start, freeze_encoder=True))
    for name in (name for name in told if name.startswith("encoder.")):
        average = told["model_ema." + name.replace(".", "")]
        assert torch.equal(found[name], average), name
        assert torch.equal(found["model_ema." + name.replace(".", "")], average), name
    changed = [n for n in told if n.startswith("decoder.") and not torch.equal(found[n], told[n])]
    assert "decoder.conv_out.weight" in changed


def test_a_run_with_a_frozen_encoder_goes_on_as_if_it_had_not_been_stopped(
    tmp_path, start, monkeypatch
):
    whole = tensors(trained(tmp_path / "whole", start, freeze_encoder=True, steps=3))
    settings = replace(TINY, init_sha256=digest(start), freeze_encoder=True, steps=3)
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_any", lambda self, _here: True)
        with pytest.raises(TrainingInterrupted, match="after step 1 of 3"):
            train_tokenizer(settings, run, resume=False, init=start, machine=Machine(save_every=1))
    train_tokenizer(settings, run, resume=True, init=start)
    found = tensors(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"code_bits": 5}, r"another architecture: code_bits 4 \(asked for 5\)"),
        ({"adversary": "patch"}, "another discriminator than the one asked for"),
        ({"adversary_width": 64}, "another discriminator than the one asked for"),
    ],
)
def test_another_network_than_the_files_is_refused(tmp_path, start, changes, complaint):
    with pytest.raises((InputError, CheckpointError), match=complaint):
        trained(tmp_path / "run", start, **changes)


def test_a_discriminator_that_is_no_numbers_is_refused(tmp_path, start):
    content = torch.load(start, weights_only=True)
    content["state_dict"][next(n for n in tensors(start.parent) if n.startswith(DISCRIMINATOR))][
        0
    ] = torch.nan
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="a discriminator with NaN or Inf"):
        trained(tmp_path / "run", tmp_path / "odd.pt")


def test_a_released_file_has_no_discriminator_and_a_new_one_is_begun(start):
    assert not load_discriminator(start.parent / "tokenizer.pt", torch.nn.Identity())


def test_a_frozen_encoder_needs_a_file_and_the_file_must_be_there(tmp_path):
    with pytest.raises(InputError, match="a frozen encoder needs a checkpoint to start from"):
        replace(TINY, freeze_encoder=True)
    with pytest.raises(InputError, match="no such checkpoint file to start from"):
        digest(tmp_path / "none.pt")


def test_a_width_that_no_norm_divides_is_refused():
    with pytest.raises(InputError, match="must be a multiple of 32, found 8"):
        replace(TINY, adversary_width=8)


def test_a_video_tokenizer_is_no_start_of_an_image_tokenizer():
    """Its fields are those of an image tokenizer, its tensors are not."""
    spec = ImageTokenizerSpec(32, (1, 2), 1, 6, True, "lsb")
    with pytest.raises(InputError, match=r"another architecture: family video \(asked for image\)"):
        read_initial(GOLDEN / "video_tiny.ckpt", spec)
    with pytest.raises(InputError, match=r"takes a clip \(T, H, W\), no picture"):
        latent_grid((32, 32), read_checkpoint(GOLDEN / "video_tiny.ckpt").spec.tokenizer)
