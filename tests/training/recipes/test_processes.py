"""Two processes train as one does: recipes in processes of torchrun, each step of two parts, and
the command in those that Lightning starts."""

import csv
import json
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from doubles import scaled_runs
from torch import distributed

from m2kit.config import ModelSpec
from m2kit.errors import InputError, M2KitError
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.datasets.table import dataset_named
from m2kit.training.recipes import processes
from m2kit.training.recipes.processes import together

LIMIT_SECONDS = 240
KINDS = ("tokenizer", "ar")
WRITTEN = {"tokenizer": ("tokenizer.pt", "tokenizer.train.pt"), "ar": ("ar.pt", "best.ckpt")}


def _environment(**more):
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process and of two, by kind and what is particular to them."""
    root = tmp_path_factory.mktemp("runs")
    data, tokenizer = root / "pictures.npz", root / "tokenizer-one" / "tokenizer.pt"
    scaled_runs.pictures(data)
    shared = {
        "tokenizer": {"kind": "tokenizer", "data": str(data)},
        "ar": {"kind": "ar", "data": str(data), "tokenizer": str(tokenizer)},
    }

    def job(kind, name, **more):
        return {**shared[kind], "folder": str(root / f"{kind}-{name}"), **more}

    def sharded(kind, name, **more):
        return job(kind, name, strategy="sharded", **more)

    jobs = [
        job("tokenizer", "ddp"),
        sharded("tokenizer", "sharded"),
        sharded("tokenizer", "resumed", stop=2, keep=str(root / "tokenizer-taken-over")),
        sharded("tokenizer", "resumed"),
        job("tokenizer", "published", published=True),
        job("tokenizer", "published-resumed", published=True, stop=2),
        job("tokenizer", "published-resumed", published=True),
        job("ar", "ddp"),
        sharded("ar", "sharded", stop=2),
        sharded("ar", "sharded"),
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.BatchNorm2d, "forward", scaled_runs.evaluating)
        for kind in KINDS:
            scaled_runs.run(**job(kind, "one"))
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", scaled_runs.__file__, str(root / "jobs.json")),
        ]
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
        assert done.returncode == 0, done.stderr
        scaled_runs.run(**job("tokenizer", "taken-over"))
    return root


def leaves(value, path=()):
    """(path, tensor or number) of nested containers."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: leaf for name, item in items for k, leaf in leaves(item, (*path, name)).items()}
    return {path: value}


def content(path):
    return leaves(torch.load(path, weights_only=True))


def assert_like(path, other):
    """The same names, shapes and dtypes, and numbers to 1e-5."""
    found, expected = content(path), content(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, abs=1e-5), name
        else:
            assert found[name] == value, name


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["ddp", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives_of_the_whole_batch(runs, kind, name):
    one, two = runs / f"{kind}-one", runs / f"{kind}-{name}"
    for file in ("resume.ckpt", *WRITTEN[kind]):
        assert_like(two / file, one / file)
    found, expected = rows(two), rows(one)
    assert len(found) == len(expected) == 2
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["sharded", "published"])
def test_a_run_that_was_stopped_between_rows_ends_as_one_that_was_not(runs, name):
    resumed = {"sharded": "resumed", "published": "published-resumed"}[name]
    stopped, whole = runs / f"tokenizer-{resumed}", runs / f"tokenizer-{name}"
    assert (
        len(json.loads((stopped / "seen-0.json").read_text()))
        < scaled_runs.STEPS * scaled_runs.BATCH // 2
    )
    assert (stopped / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    found, expected = content(stopped / "resume.ckpt"), content(whole / "resume.ckpt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(found[name], value), name


def test_each_process_keeps_its_own_averages_where_they_are_not_over_all(runs):
    first, second = (
        torch.load(runs / f"tokenizer-{name}" / "resume.ckpt", weights_only=True)
        for name in ("published", "sharded")
    )
    (one, other), (of_all,) = (c["recipe"]["statistics"] for c in (first, second))
    assert one["real"] != other["real"]
    assert of_all["real"] != 0


def test_one_process_goes_on_with_what_two_have_sharded(runs):
    taken_over, one = runs / "tokenizer-taken-over", runs / "tokenizer-one"
    assert content(taken_over / "resume.ckpt")[("step",)] == scaled_runs.STEPS
    assert_like(taken_over / "resume.ckpt", one / "resume.ckpt")
    found, expected = rows(taken_over), rows(one)
    assert found[1] == pytest.approx(expected[1], abs=1e-6, nan_ok=True)


def test_the_checkpoint_of_a_sharded_run_is_read_as_any(runs):
    checkpoint = read_checkpoint(runs / "ar-sharded" / "ar.pt")
    assert isinstance(checkpoint.spec, ModelSpec)
    assert checkpoint.spec.transformer.width == 16


@pytest.mark.parametrize("name", ["ddp", "sharded"])
def test_two_processes_see_every_picture_once_an_epoch(runs, name):
    """`epoch * pictures + index` of what was read, a whole epoch and the beginning of another."""
    seen = [json.loads((runs / f"tokenizer-{name}" / f"seen-{r}.json").read_text()) for r in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == scaled_runs.STEPS * scaled_runs.BATCH // 2
    numbers = sorted(seen[0] + seen[1])
    assert len(set(numbers)) == len(numbers)
    pictures = len(dataset_named(str(runs / "pictures.npz")).load().train.labels)
    assert pictures < len(numbers) < 2 * pictures
    assert numbers[:pictures] == list(range(pictures))


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (
            "launch",
            distributed.DistStoreError("Timed out. 1/2 clients joined.\nframe #0"),
            "the run's 2 processes did not find each other: Timed out. 1/2 clients joined.; see "
            "that all have been started and that each reaches the first one's machine",
        ),
        (
            "broadcast",
            RuntimeError("NCCL error: out of memory\nframe #0"),
            "one of the run's 2 processes lost another one, which mostly has ended and says why if "
            "it could: NCCL error: out of memory; resume the run to go on with it",
        ),
        (
            "unsaved",
            RuntimeError("Connection closed by peer"),
            "one of the run's 2 processes lost another one, which mostly has ended and says why if "
            "it could: Connection closed by peer; nothing of the run was saved, start it again",
        ),
        ("launch", RuntimeError("a kernel failed"), "a kernel failed"),
    ],
)
def test_an_error_between_processes_says_what_it_was(where, error, message, tmp_path):
    def fail(*_):
        raise error

    fabric = SimpleNamespace(world_size=2, strategy=None, launch=lambda: None, broadcast=str)
    setattr(fabric, "broadcast" if where == "unsaved" else where, fail)
    if where == "broadcast":
        (tmp_path / "resume.ckpt").write_bytes(b"")
    with (
        pytest.raises((M2KitError, RuntimeError)) as caught,
        together(fabric, None, tmp_path / "resume.ckpt"),
    ):
        pass
    assert str(caught.value) == message
    assert isinstance(caught.value, M2KitError) == (message != str(error))
    assert getattr(caught.value, "option", "") == ("--resume" if where == "broadcast" else "")


@pytest.fixture
def command(tmp_path):
    """Starts `m2kit train tokenizer --devices 2`; gives it with the file of what it tells."""
    data, running = tmp_path / "pictures.npz", []
    scaled_runs.pictures(data)

    def start(*options):
        words = [
            *(sys.executable, "-m", "m2kit", "train", "tokenizer", "--data", data, "--steps", 40),
            *("--batch", 4, "--channel-multipliers", "1,1", "--code-bits", 4, "--devices", 2),
            *("--accelerator", "cpu", "--validate-every", 20, "--save-every", 1, *options),
            *("--json", "-o", tmp_path / "run"),
        ]
        told = tmp_path / f"told-{len(running)}"
        with told.open("w") as error, told.with_suffix(".out").open("w") as out:
            process = subprocess.Popen(
                list(map(str, words)), env=_environment(), stdout=out, stderr=error
            )
        running.append(process)
        return process, told

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()


def _wait(process, until):
    ends = time.monotonic() + LIMIT_SECONDS
    while not until():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.05)


def _started_by(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(number) for number in listed]


def _alive(number):
    status = Path(f"/proc/{number}/status")
    return status.exists() and "(zombie)" not in status.read_text()


def test_processes_of_the_command_end_together_and_one_speaks(command, tmp_path):
    saved = tmp_path / "run" / "resume.ckpt"
    process, told = command()
    _wait(process, saved.exists)
    (first_other,) = _started_by(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_SECONDS) == 130, told.read_text()
    lines = told.read_text().splitlines()
    assert [line for line in lines if line.startswith("error: interrupted after step")] == lines[1:]
    step = torch.load(saved, weights_only=True)["step"]
    assert f"step {step} of 40" in lines[1]

    process, told = command("--resume")
    before = saved.stat().st_mtime_ns
    _wait(process, lambda: saved.stat().st_mtime_ns > before)
    (other,) = _started_by(process)
    os.kill(other, signal.SIGKILL)
    assert process.wait(LIMIT_SECONDS) == 1, told.read_text()
    (line,) = told.read_text().splitlines()[1:]
    assert line.startswith("error: one of the run's 2 processes lost another one, which mostly has")
    assert line.endswith("; resume the run to go on with it (--resume)")

    process, told = command("--resume", "--strategy", "sharded")
    assert process.wait(LIMIT_SECONDS) == 0, told.read_text()
    assert len(told.read_text().splitlines()) == 3, told.read_text()
    (line,) = told.with_suffix(".out").read_text().splitlines()
    assert json.loads(line)["steps"] == 40
    assert not any(map(_alive, (first_other, other)))


TWICE = """import os, sys
from pathlib import Path
from doubles import scaled_runs
for name in ("first", "second"):
    scaled_runs.STEPS += 1
    scaled_runs.run("tokenizer", folder=name, data=sys.argv[1], devices=2)
    assert "LOCAL_RANK" not in os.environ
print("both")
"""


def test_one_python_process_may_train_several_times_with_others(tmp_path):
    scaled_runs.pictures(tmp_path / "pictures.npz")
    (tmp_path / "twice.py").write_text(TWICE)
    done = subprocess.run(
        [sys.executable, "twice.py", "pictures.npz"], cwd=tmp_path, env=_environment(),
        capture_output=True, text=True, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both\n"
    for name, steps in (("first", 5), ("second", 6)):
        assert content(tmp_path / name / "resume.ckpt")[("step",)] == steps


def test_a_mistake_in_the_data_is_told_once_by_processes_of_torchrun(tmp_path):
    (tmp_path / "pictures").mkdir()
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *("-m", "m2kit", "train", "tokenizer", "--data", "pictures", "--accelerator", "cpu"),
        *("-o", "run"),
    ]
    done = subprocess.run(
        list(map(str, words)), cwd=tmp_path, env=_environment(), capture_output=True, text=True,
        timeout=LIMIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("error: pictures: expected pictures (")
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_another_process_is_told_by_the_first_one(monkeypatch):
    errors = [None, InputError("no such folder", option="--data")]
    monkeypatch.setattr(processes, "gathered", lambda *_: errors)
    with pytest.raises(M2KitError, match=r"^process 1 of the run: no such folder$") as caught:
        processes.in_every_process(SimpleNamespace(is_global_zero=True), lambda: 1)
    assert caught.value.option == "--data"
    with pytest.raises(SystemExit):
        processes.in_every_process(SimpleNamespace(is_global_zero=False), lambda: 1)
