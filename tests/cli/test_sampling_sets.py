"""sample: a set drawn in shards, killed and gone on with, merged for an evaluator."""

import json
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import picture, run_m2kit

from m2kit.cli import cli, sampling_sets
from m2kit.runtime.sample_set import part_path

SET = ("--per-class", "7", "--seed", "5", "--batch", "4")  # 70 images in 18 parts


@pytest.fixture(scope="module")
def whole(digits_engine, tmp_path_factory):
    """The set from one process, merged: (folder, bytes of samples.npz)."""
    folder = tmp_path_factory.mktemp("sets") / "one"
    sample(digits_engine, *SET, "-o", folder)
    sample("--merge", "-o", folder)
    return folder, (folder / "samples.npz").read_bytes()


def sample(*arguments):
    """Run the command in this process; its output, if it did well."""
    done = CliRunner().invoke(cli, ["sample", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def refused(*arguments, status=1):
    done = CliRunner().invoke(cli, ["sample", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return " ".join(done.stderr.split())


def test_a_set_holds_the_pictures_that_generate_draws(digits_engine, whole, tmp_path):
    run_m2kit(
        "generate", "--engine", digits_engine, "--class", "3", "-n", "2", "--first-image", "5",
        "--seed", "5", "-o", "images", cwd=tmp_path,
    )  # fmt: skip
    with np.load(whole[0] / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["arr_1"].tolist() == np.repeat(np.arange(10), 7).tolist()
        for place in (5, 6):
            drawn = picture(tmp_path / "images" / f"00003_00000{place}.png")
            np.testing.assert_array_equal(arrays["arr_0"][3 * 7 + place], drawn)


def test_five_shards_in_folders_of_their_own_give_the_same_bytes(digits_engine, whole, tmp_path):
    counts, together = [], tmp_path / "together"
    (together / "parts").mkdir(parents=True)
    for shard in (3, 0, 4, 1, 2):
        own = tmp_path / f"machine{shard}"
        done = sample(digits_engine, *SET, "--shard", f"{shard}/5", "-o", own, "--json")
        counts.append(json.loads(done.stdout)["images"])
        for path in (own / "parts").iterdir():
            path.rename(together / "parts" / path.name)
    assert sorted(counts) == [12, 12, 14, 16, 16]  # the last part has 2
    sample(digits_engine, *SET, "--merge", "-o", together)
    assert (together / "samples.npz").read_bytes() == whole[1]


_KILLED = """
import os, signal, sys
from contextlib import contextmanager
from m2kit.runtime import sample_set
real, left = sample_set.new_file, int(sys.argv.pop(1))

@contextmanager
def killed(path):
    global left
    with real(path) as temporary:
        yield temporary
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sample_set.new_file = killed
from m2kit.cli import main
main()
"""


def test_a_set_that_was_killed_goes_on_and_gives_the_same_bytes(digits_engine, whole, tmp_path):
    """Killed while it writes its fourth part, and again while it writes its third."""
    folder = tmp_path / "killed"
    command = ["sample", str(digits_engine), *SET, "-o", str(folder)]
    for writes in ("4", "3"):
        done = subprocess.run([sys.executable, "-c", _KILLED, writes, *command], timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert len(list(folder.glob("parts/.part-*"))) == 1
    before = {path: path.stat().st_mtime_ns for path in folder.glob("parts/part-*")}
    assert len(before) == 5
    done = json.loads(run_m2kit(*command, "--json", cwd=tmp_path).stdout)
    assert done["images"] == 70 and done["there_before"] == 20
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert [path.name for path in folder.glob("parts/.*")] == []  # what the killed ones left
    sample("--merge", "-o", folder)
    assert (folder / "samples.npz").read_bytes() == whole[1]
    again = json.loads(sample(*command[1:], "--json").stdout)
    assert again["there_before"] == 70 and again["images_per_second"] is None


def test_a_missing_shard_is_named_with_the_command_that_draws_it(digits_engine, whole, tmp_path):
    for shard in (0, 2):
        sample(digits_engine, *SET, "--shard", f"{shard}/4", "-o", tmp_path)
    told = refused("--merge", "-o", tmp_path)
    assert "lacks 9 of the set's 18 parts (1, 3, 5, 7, 9, ...)" in told
    command = told.split("`")[1]
    assert command.endswith("--shard 1/4") and "and likewise with --shard 3/4" in told
    words = shlex.split(command)
    assert words[:3] == ["m2kit", "sample", "ENGINE"]
    words[2] = digits_engine
    for shard in ("1/4", "3/4"):
        sample(*words[2:-1], shard)
    sample("--merge", "-o", tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == whole[1]


def test_a_folder_of_another_set_is_refused_in_one_line(digits_engine, whole, tmp_path):
    folder = whole[0]
    for options, difference in (
        ((*SET, "--seed", "6"), "sampling.seed is 5, not 6"),
        ((*SET, "--per-class", "8"), "per_class is 7, not 8"),
        ((*SET, "--uint8", "round"), "uint8 is truncate, not round"),
        ((*SET, "--class", "1-4"), "classes is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], not [1, 2, 3, 4]"),
    ):
        for more in ((), ("--merge",)):
            told = refused(digits_engine, *options, *more, "-o", folder)
            assert f"part-00000.npz is of another set: its {difference};" in told
    assert "expected parts of a set" in refused("--merge", "-o", tmp_path / "none")
    assert (folder / "samples.npz").read_bytes() == whole[1]


def test_another_engine_is_refused(digits_engine, golden_engine, whole):
    told = refused(golden_engine, "--class", "0-3", "-o", whole[0])
    assert "is of another set: its engine is digits, not" in told


@pytest.fixture
def golden_engine(exported):
    """An engine of another model."""
    from conftest import GOLDEN

    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)[1]


@pytest.mark.parametrize(
    "shard", ["", "1", "5/5", "-1/5", "1/0", "1/5/2", "a/b", "1.0/5", "\uff19/9"]
)
def test_no_shard_is_refused_before_the_engine_is_opened(shard, tmp_path):
    told = refused(tmp_path / "none", "--shard", shard, status=2)
    assert "expected I/N, N shards of which this is number I from 0 to N - 1" in told


def test_options_that_would_do_nothing_are_refused(digits_engine, tmp_path):
    assert "leave out --shard" in refused("--merge", "--shard", "0/2", status=2)
    assert "add --merge" in refused(digits_engine, "--form", "tar", status=2)
    told = refused("--merge", "--seed", "1", "--per-class", "3", status=2)
    assert "--per-class, --seed need ENGINE" in told


def test_tar_shards_are_a_data_set(whole):
    pytest.importorskip("torch")
    from m2kit.training.datasets.table import dataset_named

    sample("--merge", "--form", "tar", "-o", whole[0])
    path = whole[0] / "samples-00000.tar"
    collection = dataset_named(str(path)).load()
    halves = collection.train, collection.held_out
    assert sum(len(half.labels) for half in halves) == 70
    assert sorted(np.concatenate([half.labels for half in halves])) == sorted([*range(10)] * 7)
    path.unlink()


def test_how_far_it_is_is_told_with_the_time_left(digits_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_sets, "_TELL_SECONDS", 0)
    done = sample(digits_engine, *SET, "--shard", "0/6", "-o", tmp_path)
    lines = [line for line in done.stderr.splitlines() if "left" in line]
    assert lines == [f"{count} of 12 images, 0 h 00 min left" for count in (4, 8, 12)]


def test_ctrl_c_says_how_many_images_are_finished(digits_engine, tmp_path, monkeypatch):
    real = sampling_sets.draw_parts

    def stopped(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling_sets, "draw_parts", stopped)
    told = refused(digits_engine, *SET, "-o", tmp_path, status=130)
    assert f"interrupted: 4 of 70 images are finished in {tmp_path}. Give the same" in told
    assert part_path(tmp_path, 0).is_file()


def test_ray_and_its_workers_are_asked_for_together_and_not_by_a_merge(digits_engine, tmp_path):
    for options in (("--ray", "local"), ("--workers", "2")):
        told = refused(digits_engine, *SET, *options, "-o", tmp_path, status=2)
        assert "--ray and --workers need one another" in told
        told = refused("--merge", *options, "-o", tmp_path, status=2)
        assert "leave out --ray and --workers" in told


def test_a_missing_ray_is_told_before_anything_is_opened(digits_engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = refused("none", *SET, "--ray", "local", "--workers", "2", "-o", tmp_path)
    assert "drawing on a Ray cluster needs the package ray" in told and "'.[ray]'" in told
