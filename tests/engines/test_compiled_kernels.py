"""What TensorRT-RTX compiles when an engine is opened is kept, and read by the next process."""

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN

import m2kit
from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine

pytest.importorskip("torch")
RTX = ("1.7.1.116", "tensorrt_rtx")
IMAGE = np.zeros((1, 3, 16, 16), np.float32)


@pytest.fixture
def folder(exported, tmp_path, gpu):
    """An engine for TensorRT-RTX, built where there is no GPU and proved on the test GPU."""
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    gpu(*RTX, driver=0)
    options = BuildOptions(compute_capabilities=("8.6", "8.9"))
    build_engine(bundle, tmp_path / "m.engine", "tensorrt-rtx", options)
    return tmp_path / "m.engine"


def compiled_by(folder, gpu, **machine):
    """Plans whose kernels are compiled when all of them are used: (how many, what it says)."""
    _, trt = gpu(*RTX, **machine)
    with m2kit.open_engine(folder) as engine:
        engine.decode(engine.encode(IMAGE))
        engine.sample([1])
        state = engine.backend.active()["kernels"]
    return len(trt.compiled), state


@pytest.fixture
def kept(home):
    """The files that were kept."""
    return lambda: sorted((home / ".cache" / "m2kit" / "compiled").iterdir())


def test_kernels_are_compiled_once_for_a_gpu_and_a_driver(folder, gpu, kept):
    assert compiled_by(folder, gpu) == (5, "compiled in this process")
    (path,) = kept()
    assert path.name == "tensorrt-rtx-1.7.1.116-Test-GPU-8-6-28-SM-12-GB-driver-13000.cache"
    written = path.stat().st_mtime_ns, path.read_bytes()
    assert compiled_by(folder, gpu) == (0, f"read from {path}")
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written
    assert compiled_by(folder, gpu, driver=13020)[0] == 5
    assert compiled_by(folder, gpu, name="RTX 4090", capability="8.9")[0] == 5
    assert len(kept()) == 3
    assert compiled_by(folder, gpu)[0] == 0


def spoil(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cut(path):
    path.write_bytes(path.read_bytes()[:10])


def enlarge(path):
    with path.open("ab") as file:
        file.truncate(257 << 20)


@pytest.mark.parametrize("damage", [spoil, cut, enlarge])
def test_a_damaged_file_is_one_line_and_replaced(folder, gpu, kept, caplog, damage):
    compiled_by(folder, gpu)
    (path,) = kept()
    whole = path.read_bytes()
    damage(path)
    assert compiled_by(folder, gpu)[0] == 5
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path} is damaged, too large or of another driver")
    assert (path.read_bytes() == whole, [p.name for p in kept()]) == (True, [path.name])
    assert compiled_by(folder, gpu)[0] == 0
    assert len(caplog.records) == 1


def test_what_tensorrt_refuses_is_replaced(folder, gpu, kept, caplog):
    """It compares driver, GPU and version itself, more exactly than the file's name."""
    compiled_by(folder, gpu)
    (path,) = kept()
    compiled_by(folder, gpu, driver=13020)
    other = next(file for file in kept() if file != path)
    path.write_bytes(other.read_bytes())
    assert compiled_by(folder, gpu)[0] == 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert compiled_by(folder, gpu)[0] == 0


def test_without_a_place_for_it_every_process_compiles(folder, gpu, monkeypatch, caplog):
    def nowhere():
        raise RuntimeError("no home")

    compiled_by(folder, gpu)
    monkeypatch.setattr(Path, "home", nowhere)
    assert compiled_by(folder, gpu)[0] == 5
    assert not caplog.records
