"""--dry-run: it prints what would run of every published recipe, refuses what a run would, and
leaves nothing."""

import contextlib
import json

import pytest
import torch
from click.testing import CliRunner

from m2kit.cli import cli
from m2kit.outputs import held
from m2kit.training.recipes.presets import IMAGENET, TOKENIZERS, TRANSFORMERS, UCF

EPOCH, AR_EPOCH = IMAGENET.pictures / 256, IMAGENET.pictures / 768  # steps
FILM_EPOCH = UCF.pictures / 128
PARAMETERS = {  # published, or counted in the official code: 2.2 and 1.4 of its description
    "tokenizer-128": {"encoder": 48_422_162, "decoder": 63_599_491, "discriminator": 2_765_633},
    "tokenizer-256": {"encoder": 49_751_442, "decoder": 65_376_387, "discriminator": 2_765_633},
    "tokenizer-pretrain-16384": {"generator": 115_094_033, "discriminator": 1_909_889},
    "tokenizer-pretrain-262144": {"generator": 115_127_829, "discriminator": 2_765_633},
    "video-128": {"encoder": 144_865_298, "decoder": 225_682_051, "discriminator": 4_665_729},
    "ar-b": {"transformer": 343_570_432, "tokenizer": 115_127_829},
    "ar-l": {"transformer": 804_362_240, "tokenizer": 115_127_829},
    "ar-xl": {"transformer": 1_486_679_040, "tokenizer": 115_127_829},
}
SCHEDULES = {  # (what, step, learning rate), by the table of the paper and the configs
    "tokenizer-128": [("start", 0, 1e-4), ("drop", 250 * EPOCH, 1e-5),
                      ("drop", 300 * EPOCH, 1e-6), ("end", 350 * EPOCH - 1, 1e-6)],
    "tokenizer-256": [("start", 0, 1e-4), ("drop", 200 * EPOCH, 1e-5),
                      ("drop", 250 * EPOCH, 1e-6), ("end", 270 * EPOCH - 1, 1e-6)],
    "tokenizer-pretrain-16384": [("start", 0, 0), ("peak", 5000, 1e-4), ("end", 1_499_999, 1e-6)],
    "tokenizer-pretrain-262144": [("start", 0, 1e-4), ("drop", 800_000, 1e-5),
                                  ("drop", 1_000_000, 1e-6), ("end", 1_499_999, 1e-6)],
    "video-128": [("start", 0, 0), ("peak", 2 * FILM_EPOCH, 1e-4),
                  ("end", 2000 * FILM_EPOCH - 1, 1e-6)],
    "ar-b": [("start", 0, 1.5e-6), ("peak", 6 * AR_EPOCH, 3e-4),
             ("end of flat", (6 + 0.05 * 294) * AR_EPOCH, 3e-4), ("end", 300 * AR_EPOCH, 3e-5)],
    "ar-xl": [("start", 0, 1.2e-6), ("peak", 7 * AR_EPOCH, 2.4e-4),
              ("end of flat", (7 + 0.05 * 343) * AR_EPOCH, 2.4e-4),
              ("end", 350 * AR_EPOCH, 2.4e-5)],
}  # fmt: skip
SCHEDULES["ar-l"] = SCHEDULES["ar-b"]


def dry_run(*arguments):
    kind = "ar" if any(str(a).startswith("ar-") for a in arguments) else "tokenizer"
    return CliRunner(env={"COLUMNS": "300"}).invoke(
        cli, ["train", kind, *map(str, arguments), "--dry-run"]
    )


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A working directory where nothing is, and no weights of LPIPS are anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("name", TOKENIZERS + TRANSFORMERS)
def test_every_published_recipe_is_told_where_none_of_its_data_is(name, empty):
    done = dry_run("--preset", name, "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    counts = {network["name"]: network["parameters"] for network in plan["networks"]}
    counts["generator"] = counts.get("encoder", 0) + counts.get("decoder", 0)
    assert PARAMETERS[name].items() <= counts.items()
    trained = sum(network["trained"] for network in plan["networks"])
    assert plan["memory"]["gradients_bytes"] == 4 * trained
    assert plan["memory"]["activations_bytes"] > 10 * plan["memory"]["gradients_bytes"]
    corners = [(c["what"], c["step"], c["learning_rate"]) for c in plan["schedule"]]
    expected = SCHEDULES[name]
    assert [what for what, *_ in corners] == [what for what, *_ in expected]
    for (_, step, rate), (_, wanted_step, wanted_rate) in zip(corners, expected, strict=True):
        assert step == pytest.approx(wanted_step, abs=1.5)
        assert rate == pytest.approx(wanted_rate, rel=1e-6, abs=1e-12)
    assert plan["steps"] == corners[-1][1] + 1
    assert plan["data"]["assumed"]
    batch = 128 if name == "video-128" else 256
    assert plan["batch"]["images"] == (batch if name in TOKENIZERS else 768)
    if name in TOKENIZERS:
        assert ["vgg16-397923af.pth" in line for line in plan["missing"]] == [True, False]
    assert not list(empty.iterdir())


def test_the_table_says_what_is_assumed_and_what_is_missing(empty):
    done = dry_run("--preset", "tokenizer-128", "--accumulate", 4, "--accelerator", "cuda")
    text = " ".join(done.stdout.split())
    for part in (
        "ImageNet, assumed; name your own with --data",
        "1,281,167 an epoch of 128 x 128, 1,000 classes, 50,000 held out",
        "256 a step: 256 a device, in 4 parts of 64",
        "step 1,251,140 learning rate 1e-05 at epoch 250.00 (drop)",
        "LPIPS 14,716,160, not trained",
        "vgg16-397923af.pth is missing",
        "workspaces of operators",
    ):
        assert part in text
    assert ("none of which is here" in text) is not torch.cuda.is_available()


def test_the_data_of_pictures_is_not_assumed_of_clips(empty):
    done = dry_run("--preset", "tokenizer-128", "--frames", 17)
    assert done.exit_code == 1
    assert "tokenizer-128 was published as a run on pictures" in done.output
    assert "name the data (--data)" in done.output


def test_addresses_of_what_is_missing_are_not_broken(empty):
    arguments = ["train", "tokenizer", "--preset", "tokenizer-128", "--dry-run"]
    done = CliRunner(env={"COLUMNS": "60"}).invoke(cli, arguments)
    (line,) = [line for line in done.stdout.splitlines() if "download.pytorch.org" in line]
    assert line.endswith("VGG-16, https://download.pytorch.org/models/vgg16-397923af.pth")


def test_a_data_set_that_is_given_is_looked_for(empty, few):
    done = dry_run("--data", "few", "--adversary", "patch", "--steps", 7, "--json")
    plan = json.loads(done.stdout)
    assert plan["data"] == {
        "title": few.title, "assumed": False, "images_per_epoch": 128, "held_out_images": 128,
        "classes": 10, "size_pixels": 32, "left_out": "",
    }  # fmt: skip
    assert (plan["preset"], plan["steps"], plan["steps_per_epoch"]) == (None, 7, 4)
    assert "missing" in plan
    assert not plan["missing"]


def test_a_tokenizer_that_is_given_is_read(empty, few, tokenizer_file):
    arguments = ["train", "ar", "--data", "few", "--tokenizer", str(tokenizer_file), "--json"]
    done = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    plan = json.loads(done.stdout)
    assert plan["tokenizer"] == str(tokenizer_file)
    assert [network["name"] for network in plan["networks"]] == ["transformer", "tokenizer"]
    done = CliRunner().invoke(cli, ["train", "ar", "--tokenizer", "hf://a/b/c.ckpt", "--dry-run"])
    assert done.exit_code == 1
    assert "a dry run fetches nothing" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("tokenizer --data few --batch 100 --accumulate 3", 2),
        ("tokenizer --data few --batch 500", 1),
        ("tokenizer --data few --channel-multipliers 1,1,1,1,1,1,1", 1),
        ("tokenizer --data few --base-channels 33", 2),
        ("tokenizer --data few --freeze-encoder", 2),
        ("tokenizer --data few --init {tokenizer} --base-channels 64", 1),
        ("ar --data few", 1),
        ("ar --data few --tokenizer {tokenizer} --bits 3,4", 1),
        ("ar --data few --tokenizer {tokenizer} --heads 3", 2),
        ("ar --data few --tokenizer {tokenizer} --batch 100 --accumulate 3", 2),
    ],
)
def test_what_a_run_refuses_is_refused_in_the_same_line(wrong, status, empty, few, tokenizer_file):
    arguments = ["train", *wrong.format(tokenizer=tokenizer_file).split()]
    told = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert not list(empty.iterdir())
    real = CliRunner().invoke(cli, arguments)
    assert told.exit_code == real.exit_code == status
    assert told.stderr == real.stderr != ""


@pytest.mark.parametrize("state", ["held", "stopped", "changed", "none", "foreign"])
def test_what_stands_in_the_folder_is_refused_in_the_same_line(state, empty, few):
    """A run that holds it, one that could be gone on with, with other settings, or without being
    one; a file of something else."""
    run, options = empty / "run", ["--seed", "1"] if state == "changed" else []
    arguments = ["train", "tokenizer", "--data", "few", "-o", str(run), *options]
    run.mkdir()
    if state == "foreign":
        (run / "tokenizer.pt").write_text("mine")
    elif state != "none":
        values = ["--steps", "1", "--batch", "8", "--channel-multipliers", "1", "--code-bits", "2"]
        arguments += values
        done = CliRunner().invoke(cli, [*arguments[:6], *values, "--no-progress"])
        assert done.exit_code == 0, done.stderr
    if state in ("changed", "none"):
        arguments.append("--resume")
    before = {path: path.stat().st_mtime_ns for path in empty.rglob("*")}
    with held(run) if state == "held" else contextlib.nullcontext():
        told = CliRunner().invoke(cli, [*arguments, "--dry-run"])
        assert {path: path.stat().st_mtime_ns for path in empty.rglob("*")} == before
        real = CliRunner().invoke(cli, arguments)
    assert told.exit_code == real.exit_code == 1
    assert told.stderr == real.stderr
    assert {
        "held": "another process trains in",
        "stopped": "already holds a training run; resume it, or choose another folder (--resume",
        "changed": "was started with other settings: seed 0 (now 1)",
        "none": "holds no run to resume; start one without resuming\n",
        "foreign": "holds tokenizer.pt and no settings.json",
    }[state] in told.stderr
