"""What processes of several containers write into one folder, each being process 1 of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import GOLDEN

_APART = ("unshare", "-pf", "--mount-proc", "--kill-child")
_SHARDS, _PER_SHARD, _CLASSES = 4, 3, 2


@pytest.fixture
def bundle_and_engine(exported):
    pytest.importorskip("onnxruntime")
    if subprocess.run([*_APART, "true"], capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)


@pytest.fixture
def engine(bundle_and_engine):
    return bundle_and_engine[1]


def draw(engine, folder, shard):
    """Begin to draw a shard."""
    return start(
        folder,
        "generate", "--engine", engine, "--class", "1,5", "-n", _PER_SHARD, "--batch", 1,
        "--first-image", shard * _PER_SHARD, "-o", "pictures",
    )  # fmt: skip


def start(folder, *command):
    """Start m2kit in a folder, as process 1 of a namespace of its own."""
    return subprocess.Popen(
        [*_APART, sys.executable, "-m", "m2kit", *map(str, command)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_containers_share_a_folder(engine, tmp_path, request):
    for index in range(10 if request.config.getoption("--all-cases") else 2):
        folder = tmp_path / str(index)
        folder.mkdir()
        running = [draw(engine, folder, shard) for shard in range(_SHARDS)]
        for process in running:
            error = process.communicate(timeout=100)[1]
            assert process.returncode == 0, error
        found = os.listdir(folder / "pictures")
        assert len(found) == _SHARDS * _PER_SHARD * _CLASSES
        assert all(name.endswith(".png") for name in found)
        assert os.listdir(folder) == ["pictures"]


def test_a_shard_killed_as_process_1_is_drawn_again_at_once(engine, tmp_path):
    process = draw(engine, tmp_path, 0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pictures").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = draw(engine, tmp_path, 0)
    assert again.wait(60) == 0, again.stderr.read()
    again.stderr.close()
    assert len(os.listdir(tmp_path / "pictures")) == _PER_SHARD * _CLASSES


def test_a_build_killed_as_process_1_is_built_again_at_once(bundle_and_engine, tmp_path):
    command = (
        "build-engine", bundle_and_engine[0], "--backend", "onnxruntime", "--precision", "fp32",
        "-o", "built.engine",
    )  # fmt: skip
    process = start(tmp_path, *command)
    deadline = time.monotonic() + 60
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".built.engine.m2kit-")
    again = start(tmp_path, *command)
    error = again.communicate(timeout=100)[1]
    assert again.returncode == 0, error
    assert os.listdir(tmp_path) == ["built.engine"]
