"""Training of the video tokenizer, on clips of films."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from conftest import picture

from m2kit.cli import cli
from m2kit.config import ModelSpec
from m2kit.errors import InputError, TrainingInterrupted
from m2kit.families.image import ImageTokenizerSpec
from m2kit.progress import silent
from m2kit.runtime.codebook import report_of_tokens
from m2kit.runtime.images import uint8_from_images
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.inflation import write_inflated_checkpoint
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.evaluation.tokenizer import (
    codebook_of_crops,
    pictures_above_reconstructions,
    psnr_of_crops,
)
from m2kit.training.models.discriminator import ClipDiscriminator
from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes import loop
from m2kit.training.recipes.examples import tokenizer_examples
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.plan import found_data, tokenizer_plan
from m2kit.training.recipes.settings import TokenizerSettings, digest
from m2kit.training.recipes.tokenizer import TokenizerRecipe, train_tokenizer

pytestmark = pytest.mark.usefixtures("uncurved")


@pytest.fixture
def settings(films):
    """Of a small run."""
    return TokenizerSettings(
        data=str(films), frames=5, size=16, base_channels=32, channel_multipliers=(2, 2),
        blocks_per_level=1, code_bits=4, epochs=1, steps=4, batch=4, learning_rate=1e-3,
        ema_decay=0.5, entropy_weight=0.1, entropy_temperature=0.01, commitment_weight=0.25, seed=0,
        adversary="patch", adversary_width=4, log_every=1, validate_every=2,
    )  # fmt: skip


def test_a_run_leaves_a_video_checkpoint_and_says_which_films_it_left_out(
    settings, films, tmp_path
):
    told = []
    training = train_tokenizer(settings, tmp_path / "run", resume=False, tell=told.append)
    assert told[0].startswith(
        f"films left out: 1 of fewer than 5 frames ({films / 'train/short.mp4'}); 1 that cannot be "
        f"read (first: {films / 'val/damaged.mp4'}: "
    )
    assert training.data == films.name
    checkpoint = read_checkpoint(tmp_path / "run" / "tokenizer.pt")
    assert checkpoint.spec.tokenizer == settings.spec
    assert checkpoint.training["frames"] == 5
    state = read_file(tmp_path / "run" / "tokenizer.train.pt", check=True).tensors
    assert state["loss.discriminator.main.0.weight"].shape == (4, 3, 3, 3, 3)
    assert "model_ema.lossdiscriminatormain0weight" in state
    sheet = picture(tmp_path / "run" / "samples.png")
    assert sheet.shape[0] >= 8 * 16 and sheet.shape[1] >= 5 * 16
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Video tokenizer" in page and "frames of held-out clips, a row of rec" in page
    model = model_from_checkpoint(checkpoint).tokenizer
    held_out = tokenizer_examples(settings).held_out
    clips = torch.stack([held_out[index][0] for index in range(2)])
    with torch.no_grad():
        rebuilt = model.decoder(model.codes(clips)).clamp(-1, 1)
    error = [
        (uint8_from_images(a).astype(float) - uint8_from_images(b)) ** 2
        for a, b in zip(clips.transpose(1, 2).numpy(), rebuilt.transpose(1, 2).numpy(), strict=True)
    ]
    each = [10 * torch.log10(255**2 / torch.tensor(e.mean((1, 2, 3)))) for e in error]
    assert training.held_out_psnr_db == pytest.approx(torch.cat(each).mean().item(), abs=2e-3)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(settings, tmp_path, monkeypatch):
    train_tokenizer(settings, tmp_path / "whole", resume=False)
    asked = iter([False, False, True])
    any_stop = loop.Run._any
    monkeypatch.setattr(loop.Run, "_any", lambda self, here: next(asked, False))
    with pytest.raises(TrainingInterrupted, match="after step 3 of 4"):
        train_tokenizer(settings, tmp_path / "stopped", resume=False)
    monkeypatch.setattr(loop.Run, "_any", any_stop)
    train_tokenizer(settings, tmp_path / "stopped", resume=True)
    whole, stopped = (
        read_file(tmp_path / name / "tokenizer.train.pt", check=True).tensors
        for name in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name


def test_a_run_starts_from_an_image_tokenizer_that_was_inflated(settings, tmp_path):
    spec, init = ImageTokenizerSpec(32, (2, 2), 1, 4, True, "lsb"), tmp_path / "video.pt"
    write_random_checkpoint(tmp_path / "image.pt", ModelSpec(spec, None), seed=1)
    write_inflated_checkpoint(init, tmp_path / "image.pt")
    image = model_from_checkpoint(read_checkpoint(tmp_path / "image.pt")).tokenizer
    started = replace(settings, init_sha256=digest(init), steps=1, learning_rate=1e-9)
    train_tokenizer(started, tmp_path / "run", resume=False, init=init)
    model = model_from_checkpoint(read_checkpoint(tmp_path / "run" / "tokenizer.pt")).tokenizer
    frame = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        of_image, of_video = image.encoder(frame), model.encoder(frame[:, :, None])[:, :, 0]
    torch.testing.assert_close(of_video, of_image, atol=1e-5, rtol=0)
    longer = replace(started, frames=1)
    begun = []
    with pytest.raises(InputError, match="another architecture: family image"):
        train_tokenizer(
            longer, tmp_path / "no", resume=False, init=tmp_path / "image.pt", begin=begun.append
        )
    assert not begun  # no film was looked through
    train_tokenizer(longer, tmp_path / "frames", resume=False, init=init)


def test_the_loss_is_per_frame_and_judged_in_three_dimensions(settings):
    torch.manual_seed(0)
    perceptual = PerceptualNetwork()
    recipe = TokenizerRecipe(replace(settings, perceptual_weight=2.0), 10, perceptual)
    assert isinstance(recipe.discriminator.network, ClipDiscriminator)
    clips = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    for phase in recipe.phases:
        phase.network.eval()
    losses = recipe.phases[0].losses(0, [clips])
    rebuilt, latent = recipe.generator.network(clips)
    assert latent.shape == (2, 4, 3, 8, 8)
    each = [perceptual(clips[:, :, t], rebuilt[:, :, t]).mean() for t in range(5)]
    torch.testing.assert_close(losses["perceptual"], torch.stack(each).mean())
    logits = recipe.discriminator.network(rebuilt)
    wanted = torch.nn.functional.softplus(-logits.flatten(1).mean(1)).mean()
    torch.testing.assert_close(losses["generator_loss"], wanted)
    total = (
        losses["l1"]
        + 0.1 * (losses["entropy_per_position"] - losses["entropy_of_mean"])
        + 0.25 * losses["commitment"]
        + 2 * losses["perceptual"]
        + 0.1 * losses["generator_loss"]
    )
    torch.testing.assert_close(losses["loss"], total)


@torch.no_grad()
def test_a_measurement_is_of_every_frame(settings):
    recipe = TokenizerRecipe(settings, 10)
    clips = torch.rand(3, 3, 5, 16, 16) * 2 - 1
    found = recipe.measure([clips], 2)
    rebuilt, _ = recipe.generator.averaged(clips)
    square = (rebuilt.clamp(-1, 1) - clips).square().mean((1, 3, 4))
    torch.testing.assert_close(found["held_out_psnr"], (10 * torch.log10(4 / square)).mean(1))
    sheet = recipe.samples([clips])
    assert sheet.shape == (30, 3, 16, 16)
    torch.testing.assert_close(torch.from_numpy(sheet[10:15]), clips[1].transpose(0, 1))
    torch.testing.assert_close(
        torch.from_numpy(sheet[15:20]), rebuilt[1].clamp(-1, 1).transpose(0, 1)
    )


def test_held_out_clips_are_measured_whole_and_shown_by_the_row(settings):
    held_out = tokenizer_examples(settings).held_out
    torch.manual_seed(2)
    tokenizer = Tokenizer(settings.spec).eval()
    clips = torch.stack([held_out[index][0] for index in range(2)])
    sheet = pictures_above_reconstructions(tokenizer, held_out, rows=5, columns=5)
    assert sheet.shape == (20, 3, 16, 16)
    torch.testing.assert_close(torch.from_numpy(sheet[10:15]), clips[1].transpose(0, 1))
    tokens = tokenizer.tokens(tokenizer.codes(clips), (16,)).numpy()
    assert codebook_of_crops(tokenizer, held_out) == report_of_tokens(tokens, (16,), "lsb")
    train = tokenizer_examples(settings).train
    assert psnr_of_crops(tokenizer, train) == psnr_of_crops(tokenizer, train.whole())


def test_a_plan_of_clips_is_of_films_that_are_there(settings):
    begun = []
    data = found_data(settings, lambda stage, total: begun.append((stage, total)) or silent(stage))
    assert (data.images_per_epoch, data.held_out_images, data.frames) == (10, 2, 5)
    assert "1 of fewer than 5 frames" in data.left_out
    assert begun == [("looking through films", 14)]
    few, many = (
        tokenizer_plan(replace(settings, frames=n), Machine(), replace(data, frames=n))
        for n in (1, 5)
    )
    assert many.memory.activations_bytes > 2 * few.memory.activations_bytes
    assert [n.name for n in many.networks] == ["encoder", "decoder", "discriminator"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "trained on a folder of films; found the data set digits"),
        (("--data", "none.mp4"), "'none.mp4' is no data set"),
        (("--data", "FILMS", "--adversary", "patch", "--size", "8"), "clips of 16 x 16 pixels"),
        (("--data", "FILMS"), "are of several sizes, or not square; name the one to train on"),
        (("--data", "FILMS", "--size", "16"), "a batch of 32 is more than the 10 training"),
        (("--data", "EMPTY"), "expected a folder with films"),
    ],
)
def test_what_no_clips_can_be_taken_of_is_one_line(films, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"FILMS": str(films), "EMPTY": str(tmp_path / "empty")}
    arguments = [places.get(argument, argument) for argument in arguments]
    done = CliRunner().invoke(
        cli, ["train", "tokenizer", "--frames", "5", *arguments, "-o", str(tmp_path / "run")]
    )
    assert done.exit_code in (1, 2)
    assert words in " ".join(done.stderr.splitlines()[-1].split()), done.stderr
    assert not (tmp_path / "run").exists()


def test_pictures_that_are_films_lead_to_clips(films, tmp_path):
    done = CliRunner().invoke(cli, ["train", "tokenizer", "--data", str(films), "-o", "run"])
    assert done.exit_code == 1
    assert "it holds films, of which clips are taken (--frames)" in done.stderr


def test_a_dry_run_tells_clips_and_what_is_left_out(films):
    arguments = ["train", "tokenizer", "--data", str(films), "--frames", "5", "--size", "16"]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(cli, [*arguments, "--batch", "2", "--dry-run"])
    assert "10 an epoch of 5 x 16 x 16" in done.stdout, done.output
    assert "films left out: 1 of fewer than 5 frames" in done.stdout
    done = CliRunner().invoke(cli, [*arguments, "--batch", "2", "--dry-run", "--json"])
    assert json.loads(done.stdout)["data"]["frames"] == 5
