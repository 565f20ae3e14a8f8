"""Kills, full disks, hostile files: one line, exit status 1, nothing half-written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import GOLDEN, run_m2kit

from m2kit.training.checkpoints.writing import save_whole

AR = GOLDEN / "ar_tiny.ckpt"
HEADS = ("--spec", '{"heads": 4}')


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported(AR, heads=4)[0], tmp_path / "a.bundle")


def one_error(done):
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    return lines[-1]


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


@pytest.mark.parametrize("command", ["export", "build-engine"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, bundle, command):
    arguments = {
        "export": ["export", "--ckpt", AR, *HEADS, "-o", "new"],
        "build-engine": ["build-engine", bundle, "-o", "new"],
    }[command]
    done = run_m2kit(*arguments, cwd=tmp_path, check=False, preexec_fn=small_files_only)
    assert "File too large; nothing was left behind" in one_error(done)
    assert os.listdir(tmp_path) == ["a.bundle"]


def heed_interrupts():
    """A shell's background jobs inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_when_begun(arguments, folder, prefix, sent):
    """Start a command and send a signal as soon as its temporary folder appears."""
    process = subprocess.Popen(
        [sys.executable, "-m", "m2kit", *map(str, arguments)],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(f"{prefix}*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode != 0


def test_a_disk_that_fills_up_in_training_keeps_the_last_whole_epoch(tmp_path):
    """The resume file of epoch 1 fits, the larger one of another run does not."""
    resume = tmp_path / "resume.ckpt"
    save_whole({"epoch": torch.zeros(100)}, resume)
    before = resume.read_bytes()
    script = (
        "import torch; from pathlib import Path\n"
        "from m2kit.training.checkpoints.writing import save_whole\n"
        "save_whole({'x': torch.zeros(1_000_000)}, Path('resume.ckpt'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
    )
    assert "FolderError: cannot write" in done.stderr
    assert resume.read_bytes() == before
    assert os.listdir(tmp_path) == ["resume.ckpt"]


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        ("export", signal.SIGKILL),
        ("export", signal.SIGTERM),
        ("build-engine", signal.SIGKILL),
        ("build-engine", signal.SIGINT),
    ],
)
def test_a_killed_command_leaves_nothing_that_opens_and_can_be_repeated(
    tmp_path, bundle, command, sent
):
    arguments = {
        "export": ["export", "--ckpt", AR, *HEADS, "-o", "new"],
        "build-engine": ["build-engine", bundle, "-o", "new"],
    }[command]
    interrupt_when_begun(arguments, tmp_path, ".new.m2kit-", sent)
    assert not (tmp_path / "new").exists()
    if sent != signal.SIGKILL:
        assert os.listdir(tmp_path) == ["a.bundle"]
    run_m2kit(*arguments, cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.bundle", "new"]
    run_m2kit("verify", "new", cwd=tmp_path)


def test_a_failed_export_keeps_the_bundle_that_was_there(tmp_path, bundle):
    before = (bundle / "bundle.json").read_bytes()
    broken = tmp_path / "broken.pt"
    content = torch.load(AR, weights_only=True)
    content["state_dict"]["transformer.norm.weight"].fill_(float("nan"))
    torch.save(content, broken)
    done = run_m2kit("export", "--ckpt", broken, *HEADS, "-o", bundle, cwd=tmp_path, check=False)
    assert "tensors with NaN or Inf: transformer.norm.weight" in one_error(done)
    assert (bundle / "bundle.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, bundle):
    (tmp_path / "file").write_text("")
    for arguments in (
        ["export", "--ckpt", AR, *HEADS, "-o", "file/x.bundle"],
        ["build-engine", bundle, "-o", "file/x.engine"],
        ["build-engine", bundle, "-o", "file"],
    ):
        error = one_error(run_m2kit(*arguments, cwd=tmp_path, check=False))
        assert "-o" in error
    assert sorted(os.listdir(tmp_path)) == ["a.bundle", "file"]


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


@pytest.mark.parametrize("content", [{"state_dict": {"encoder.x": Exploit()}}, [1], {"a": "b"}])
def test_hostile_and_foreign_files_are_one_line(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    one_error(run_m2kit("export", "--ckpt", "a.pt", cwd=tmp_path, check=False))
    assert os.listdir(tmp_path) == ["a.pt"]


def test_of_several_processes_the_first_one_tells_of_an_error_and_others_wait(monkeypatch):
    from click.testing import CliRunner

    from m2kit.cli import cli, commands

    waited = []
    monkeypatch.setattr(commands.time, "sleep", waited.append)
    for rank, expected in (("0", []), ("1", [5])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert CliRunner().invoke(cli, ["verify"]).exit_code == 2
        assert waited == expected


def test_an_error_without_a_message_of_ours_is_still_one_line(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from m2kit.cli import cli

    def full(path):
        raise OSError(28, "No space left on device", "/full")

    monkeypatch.setattr("m2kit.cli.reporting.kind_of_folder", full)
    result = CliRunner().invoke(cli, ["verify", "x"])
    assert (result.exit_code, result.stderr) == (1, "error: /full: No space left on device\n")
