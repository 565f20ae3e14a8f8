import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from m2kit import outputs
from m2kit.errors import FolderError, InputError, M2KitError
from m2kit.runtime.saving import write_grid
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.metrics import MetricsLog
from m2kit.training.recipes.run_folder import check_run, open_run

GONE = ...


def opened(folder, settings, resume, tell=lambda text: None):
    """The settings to go on with and the file to resume from; the folder is free again."""
    with open_run(folder, settings, resume, tell, first=True) as run:
        return run


def test_a_run_is_resumed_only_when_asked_and_with_its_own_settings(tmp_path, ar_settings):
    settings = ar_settings()
    with pytest.raises(InputError, match="no run to resume"):
        opened(tmp_path / "run", settings, resume=True)
    assert not list(tmp_path.iterdir())
    assert opened(tmp_path / "run", settings, resume=False) == (settings, None)
    assert opened(tmp_path / "run", settings, resume=True) == (settings, None)  # killed at once
    with pytest.raises(InputError, match="resume it, or"):
        opened(tmp_path / "run", settings, resume=False)
    with pytest.raises(InputError, match=r"seed 3 \(now 4\)"):
        opened(tmp_path / "run", replace(settings, seed=4), resume=True)


def test_a_setting_that_one_of_both_leaves_open_is_another_setting(tmp_path, ar_settings):
    open_size, given = ar_settings(), ar_settings(size=32)
    opened(tmp_path, open_size, resume=False)
    with pytest.raises(InputError, match=r"other settings: size None \(now 32\)"):
        opened(tmp_path, given, resume=True)
    opened(tmp_path / "other", given, resume=False)
    with pytest.raises(InputError, match=r"other settings: size 32 \(now None\)"):
        opened(tmp_path / "other", open_size, resume=True)


def test_a_start_that_fails_leaves_the_folder_free(tmp_path, ar_settings):
    def fails(resume):
        with (
            pytest.raises(InputError, match="in the block"),
            open_run(tmp_path, ar_settings(), resume, lambda text: None, first=True),
        ):
            raise InputError("in the block")

    fails(resume=False)
    assert not (tmp_path / "settings.json").exists()
    opened(tmp_path, ar_settings(), resume=False)
    fails(resume=True)
    assert (tmp_path / "settings.json").exists()  # of a run that was there before


def test_a_run_may_be_given_more_epochs_which_its_schedule_does_not_see(tmp_path, ar_settings):
    told, settings = [], ar_settings(epochs=3)
    opened(tmp_path, settings, resume=False, tell=told.append)
    opened(tmp_path, settings, resume=True, tell=told.append)
    assert not told
    longer = replace(settings, epochs=5)
    recorded = replace(longer, schedule_length=3)
    for asked in (longer, longer, recorded):
        assert opened(tmp_path, asked, resume=True, tell=told.append) == (recorded, None)
    assert told == [
        "going on to 5 epochs in place of 3: the learning rate reaches its lowest in epoch "
        "3, as planned, and stays there"
    ]
    values = json.loads((tmp_path / "settings.json").read_text())
    assert (values["epochs"], values["schedule_length"]) == (5, 3)
    longest = replace(settings, epochs=9)
    assert opened(tmp_path, longest, resume=True)[0] == replace(longest, schedule_length=3)
    for wrong, complaint in (
        (settings, r"other settings: epochs 9 \(now 3\); repeat them"),
        (replace(longest, schedule_length=9), r"schedule_length 3 \(now 9\)"),
        (replace(longest, epochs=10, seed=4), r"other settings: seed 3 \(now 4\); repeat them"),
    ):
        before = (tmp_path / "settings.json").read_bytes()
        with pytest.raises(InputError, match=complaint):
            opened(tmp_path, wrong, resume=True, tell=told.append)
        assert (tmp_path / "settings.json").read_bytes() == before
    assert len(told) == 1


HOLDER = """import sys, time
from pathlib import Path
from m2kit.training.recipes.run_folder import open_run
from m2kit.training.recipes.settings import TokenizerSettings
with open_run(Path(sys.argv[1]), TokenizerSettings(
    data="digits", base_channels=32, channel_multipliers=(1, 1, 2, 2), blocks_per_level=1,
    code_bits=8, epochs=12, batch=32, learning_rate=1e-3, ema_decay=0.98, entropy_weight=0.1,
    entropy_temperature=0.01, commitment_weight=0.25, seed=0,
), False, print, first=True):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_folder_in_use_takes_no_second_run_and_is_free_once_the_first_is_killed(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for options in ((), ("--resume",)):
            done = subprocess.run(
                [sys.executable, "-m", "m2kit", "train", "tokenizer", "-o", folder, *options],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (done.returncode, done.stdout) == (1, "")
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: another process trains in {folder}; wait until it ends")
        assert os.listdir(folder) == ["settings.json"]
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    done = subprocess.run([sys.executable, "-c", HOLDER, folder], capture_output=True, text=True)
    assert "already holds a training run; resume it" in done.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["settings.json", "metrics.csv", "report.html", "ar.pt"])
def test_what_stands_in_the_place_of_a_file_is_noticed_before_the_training(
    tmp_path, tokenizer_file, ar_settings, monkeypatch, name, make
):
    make(tmp_path / name)
    monkeypatch.setattr("m2kit.training.recipes.ar.read_checkpoint", None)
    with pytest.raises(FolderError, match=f"{name} is (no regular file|a folder)"):
        train_ar(ar_settings(), tokenizer_file, tmp_path, resume=False)


@pytest.mark.parametrize("name", ["ar.pt", "report.html", "samples.png", "resume.ckpt"])
def test_what_a_run_would_write_over_is_refused_before_anything_is_loaded(
    tmp_path, tokenizer_file, ar_settings, monkeypatch, name
):
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr("m2kit.training.recipes.ar.read_checkpoint", None)
    with pytest.raises(FolderError, match=f"holds {name} and no settings.json: .*; move it away"):
        train_ar(ar_settings(), tokenizer_file, tmp_path, resume=False)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_a_start_that_fails_leaves_nothing_that_a_second_one_would_refuse(tmp_path, ar_settings):
    def fails():
        with open_run(tmp_path, ar_settings(), False, print, first=True):
            for name in ("samples.png", "best.ckpt", "metrics.csv"):
                (tmp_path / name).write_text("of the first one")
            raise InputError("in the block")

    for _ in range(2):
        with pytest.raises(InputError, match="in the block"):
            fails()
        check_run(tmp_path, ar_settings(), False, "ar.pt")
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_folder_that_cannot_be_written_is_called_by_its_name(tmp_path, ar_settings, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # a root may write anywhere
    with pytest.raises(FolderError) as caught:
        check_run(tmp_path, ar_settings(), False)
    assert str(caught.value) == (
        f"cannot write {tmp_path}: {tmp_path} is not a writable folder; choose another output"
    )


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("file", ["settings.json", "samples.png", "metrics.csv"])
def test_a_full_disk_says_where_the_run_is_and_how_to_go_on(
    tmp_path, ar_settings, monkeypatch, file, saved
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def train():
        with open_run(tmp_path, ar_settings(), saved, print, first=True):
            if file == "samples.png":
                write_grid(tmp_path / file, np.zeros((1, 3, 8, 8), np.float32), columns=1)
            log.add(1, 1.0, {})

    log = MetricsLog(tmp_path / "metrics.csv", {}, 0)
    if saved:
        opened(tmp_path, ar_settings(), resume=False)
        (tmp_path / "resume.ckpt").write_bytes(b"")
    with monkeypatch.context() as patch:
        if file == "metrics.csv":
            patch.setattr(EventsWriter, "flush", full)
        else:
            patch.setattr(outputs, "_flush", full)
        with pytest.raises(FolderError) as caught:
            train()
    log.close()
    what = tmp_path / ("tensorboard" if file == "metrics.csv" else "settings.json")
    way = (
        f"{tmp_path} holds the run as it was last saved: free some space and resume it (--resume)"
        if saved
        else "nothing of the run was saved: free some space and start again, or choose another "
        "folder (-o)"
    )
    assert f"{caught.value} ({caught.value.option})" == (
        f"cannot write {what}: No space left on device; {way}"
    )
    assert (tmp_path / "settings.json").exists() is saved


@pytest.mark.parametrize(
    "text",
    ["DefaultCPUAllocator: can't allocate memory: you tried to", "CUDA out of memory. Tried to"],
)
def test_a_model_that_memory_does_not_hold_is_one_line(tmp_path, ar_settings, text):
    def train(text):
        with open_run(tmp_path / text[:4], ar_settings(), False, print, first=True):
            raise RuntimeError(text)

    with pytest.raises(M2KitError, match=r"out of memory; .* smaller batch"):
        train(text)
    with pytest.raises(RuntimeError, match="some other"):
        train("some other error of torch")


def test_what_cannot_be_a_run_folder_is_one_line(tmp_path, ar_settings):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderError, match=f"cannot write {path}: .*choose another folder"):
            opened(path, ar_settings(), resume=False)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seed": "3"}, "seed: expected a whole number, found '3'"),
        ({"seed": 2**70}, "seed: expected a whole number"),
        ({"epochs": True}, "epochs: expected a whole number, found True"),
        ({"learning_rate": None}, "learning_rate: expected a number, found None"),
        ({"bits": 8}, "bits: expected a list, found 8"),
        ({"bits": [3, "5"]}, r"bits\[1\]: expected a whole number, found '5'"),
        ({"guidance": {"a": 1}}, "guidance: expected a list"),
        ({"data": 1}, "data: expected text, found 1"),
        ({"tokenizer_sha256": []}, "tokenizer_sha256: expected text"),
        ({"odd": 1}, "odd: a field that is not known"),
        ({"width": GONE}, "width: is missing"),
    ],
    ids=str,
)
def test_forged_settings_are_one_line_that_names_the_field(
    tmp_path, ar_settings, change, complaint
):
    settings = ar_settings()
    opened(tmp_path, settings, resume=False)
    values = json.loads((tmp_path / "settings.json").read_text()) | change
    kept = {name: value for name, value in values.items() if value is not GONE}
    (tmp_path / "settings.json").write_text(json.dumps(kept))
    refused(tmp_path, settings, complaint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"seed": NaN}', "\xff", "[" * 9999])
def test_what_is_no_settings_file_is_one_line(tmp_path, ar_settings, text):
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    refused(tmp_path, ar_settings(), "holds no settings of such a run")


def refused(folder, settings, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        opened(folder, settings, resume=True)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'settings.json'} holds no settings of such a run (")
    assert message.endswith("choose another folder")
