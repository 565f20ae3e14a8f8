"""sample --ray: the bytes of one process, also where a worker dies; `make test-ray` runs these."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_m2kit
from doubles.until import until

pytest.importorskip("ray")
SET = ("--per-class", "7", "--seed", "5", "--batch", "4")  # 70 images in 18 parts
RAY = ("--ray", "local", "--workers", "2", "--threads", "1")


@pytest.fixture(scope="module")
def whole(digits_engine, tmp_path_factory):
    """The parts' bytes of the set from one process, by name."""
    folder = tmp_path_factory.mktemp("sets")
    run_m2kit("sample", digits_engine, *SET, "-o", "one", cwd=folder)
    return parts(folder / "one")


def parts(folder):
    return {path.name: path.read_bytes() for path in (folder / "parts").glob("part-*")}


def descendants(root):
    """(pid, command line) of the processes below one."""
    table = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
        table[int(path.name)] = int(stat[1]), command
    for pid, (parent, command) in table.items():
        while parent not in (0, root):
            parent = table.get(parent, (0, ""))[0]
        if parent == root:
            yield pid, command


def workers(root):
    return [pid for pid, command in descendants(root) if command.startswith("ray::MapWorker")]


def started(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "m2kit", "sample", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_workers_of_which_one_is_killed_give_the_bytes_of_one_process(
    digits_engine, whole, tmp_path
):
    run_m2kit(
        "sample", digits_engine, *SET, "--shard", "1/6", "-o", "set", cwd=tmp_path
    )  # parts 1, 7 and 13, which workers then leave alone
    process = started(digits_engine, *SET, *RAY, "-o", "set", "--json", cwd=tmp_path)
    until(lambda: len(parts(tmp_path / "set")) > 5, 60)
    both = workers(process.pid)
    assert len(both) == 2
    os.kill(both[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["images"] == 70 and told["there_before"] == 12 and told["missing_parts"] == 0
    assert told["workers"] == 2 and told["threads_of_worker"] == "1"
    shards = json.loads(run_m2kit("sample", digits_engine, *SET, "-o", "set", "--json",
                                  cwd=tmp_path).stdout)  # fmt: skip
    assert shards["there_before"] == 70
    found = parts(tmp_path / "set")
    assert [name for name in sorted(whole) if found[name] != whole[name]] == [
        "part-00001.npz", "part-00007.npz", "part-00013.npz"
    ]  # fmt: skip  # which tell that they are of six shards


def test_ctrl_c_ends_the_workers_in_one_line_and_the_same_command_goes_on(
    digits_engine, whole, tmp_path
):
    process = started(digits_engine, *SET, *RAY, "-o", "set", cwd=tmp_path)
    until(lambda: (tmp_path / "set" / "parts" / "part-00001.npz").exists(), 60)
    below = [pid for pid, _ in descendants(process.pid)]
    assert below
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Give the same command again to go on." in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    run_m2kit("sample", digits_engine, *SET, "-o", "set", cwd=tmp_path)
    assert parts(tmp_path / "set") == whole


_BROKEN = """
from m2kit.errors import BackendError
from m2kit.runtime import ray_sampling

class Broken(ray_sampling.Worker):
    def _opened(self):
        raise BackendError("expected m2kit 1, as where the command runs, found m2kit 2")

ray_sampling.Worker = Broken
from m2kit.cli import main
main()
"""


def test_an_error_of_a_worker_is_one_line(digits_engine, tmp_path):
    (tmp_path / "broken.py").write_text(_BROKEN)
    done = subprocess.run(
        [sys.executable, "broken.py", "sample", digits_engine, *SET, *RAY, "-o", "set"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("error: a worker on "), (done.stderr, done.stdout)
    assert last.endswith("expected m2kit 1, as where the command runs, found m2kit 2")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("auto", "no Ray cluster at 'auto'"),
        ("ray://host:10001", "is Ray's client"),
        ("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9'"),
        ("127.0.0.1:99999", "no Ray cluster at '127.0.0.1:99999'"),
        ("somewhere", "expected HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(digits_engine, tmp_path, address, message):
    done = run_m2kit(
        "sample", digits_engine, *SET, "--ray", address, "--workers", "2", "-o", "set",
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and message in done.stderr.strip().splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
