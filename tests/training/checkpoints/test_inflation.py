"""A video tokenizer made of an image tokenizer: of one frame it computes the same."""

import json

import pytest
import torch
from click.testing import CliRunner
from conftest import GOLDEN

from m2kit.cli import cli
from m2kit.config import PRESETS, ModelSpec, Preset
from m2kit.errors import CheckpointError
from m2kit.families.image import ImageTokenizerSpec
from m2kit.training.checkpoints.inflation import inflated_spec, write_inflated_checkpoint
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint

IMAGE = ImageTokenizerSpec(32, (1, 2, 2), 1, 5, True, "lsb")  # one temporal stride


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("inflation") / "image.pt"
    write_random_checkpoint(path, ModelSpec(IMAGE, None), seed=1)
    return path


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_one_frame_gives_what_the_image_model_gives(image, tmp_path, weights):
    write_inflated_checkpoint(tmp_path / "video.pt", image)
    checkpoint = read_checkpoint(tmp_path / "video.pt", weights=weights)
    assert checkpoint.spec == inflated_spec(ModelSpec(IMAGE, None))
    assert checkpoint.spec.tokenizer.frames == 17 and checkpoint.source.assumed == {}
    video = model_from_checkpoint(checkpoint).tokenizer
    still = model_from_checkpoint(read_checkpoint(image, weights=weights)).tokenizer
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = still.encoder(pixels)
    assert latent.std() > 0.1
    torch.testing.assert_close(
        video.encoder(pixels[:, :, None])[:, :, 0], latent, atol=1e-5, rtol=0
    )
    codes = still.quantize(latent)
    decoded = video.decoder(codes[:, :, None])
    assert decoded.shape == (2, 3, 1, 16, 24)
    torch.testing.assert_close(decoded[:, :, 0], still.decoder(codes), atol=1e-5, rtol=0)


def test_a_still_clip_has_the_image_in_every_later_frame_of_the_encoder(image, tmp_path):
    """Kernels look at one frame alone, so only the norms' statistics could differ, and do not."""
    write_inflated_checkpoint(tmp_path / "video.pt", image)
    video = model_from_checkpoint(read_checkpoint(tmp_path / "video.pt")).tokenizer
    pixels = torch.rand(1, 3, 1, 8, 8) * 2 - 1
    latent, alone = video.encoder(pixels.repeat(1, 1, 5, 1, 1)), video.encoder(pixels)
    torch.testing.assert_close(latent, alone.repeat(1, 1, 3, 1, 1), atol=1e-5, rtol=0)


def test_channels_of_doubled_time_stand_twice(image, tmp_path):
    write_inflated_checkpoint(tmp_path / "video.pt", image)
    own, made = read_checkpoint(image).tensors(), read_checkpoint(tmp_path / "video.pt").tensors()
    name = "decoder.up.2.upsample.conv1"
    kernel = made[f"{name}.conv_1.weight"]
    assert torch.equal(kernel[:, :, 2], own[f"{name}.weight"].repeat(2, 1, 1, 1))
    assert not kernel[:, :, :2].any()
    assert torch.equal(made[f"{name}.conv_1.bias"], own[f"{name}.bias"].repeat(2))
    other = made["decoder.up.1.upsample.conv1.conv_1.weight"]  # its level leaves time alone
    assert torch.equal(other[:, :, 2], own["decoder.up.1.upsample.conv1.weight"])


def test_only_an_image_tokenizer_of_the_preset_is_inflated(image, tmp_path):
    path = tmp_path / "video.pt"
    with pytest.raises(CheckpointError, match="becomes another model: base_channels is 32, exp"):
        write_inflated_checkpoint(path, image, PRESETS["video-128"].spec)
    with pytest.raises(CheckpointError, match="image tokenizer's file, found a video tokenizer"):
        write_inflated_checkpoint(path, GOLDEN / "video_tiny.ckpt")
    assert not path.exists()


def test_the_command_inflates_once(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "video-128", Preset(inflated_spec(ModelSpec(IMAGE, None)), ()))

    def run(*arguments):
        return CliRunner().invoke(cli, ["init-checkpoint", *map(str, arguments)])

    done = run("--preset", "video-128", "--inflate", image, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["checkpoint"], told["inflated_from"]) == ("video_128.pt", str(image))
    assert read_checkpoint(tmp_path / "video_128.pt").source.same_as == ("video-128",)
    again = run("--preset", "video-128", "--inflate", image)
    assert again.exit_code == 1 and "video_128.pt exists, and it is never replaced" in again.stderr
    assert run("--inflate", image).exit_code == 0 and (tmp_path / "image_video.pt").is_file()
    seeded = run("--inflate", image, "--seed", 1)
    assert seeded.exit_code == 2 and "leave out --seed" in seeded.stderr
    described = CliRunner().invoke(cli, ["describe", "video_128.pt", "--json"])
    about = json.loads(described.stdout)
    assert (about["tokenizer_family"], about["downsampling"]) == ("video", [2, 4, 4])
    assert len(about["training_inflated_from_sha256"]) == 64
