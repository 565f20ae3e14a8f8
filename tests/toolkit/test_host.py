"""What this process may use of the processor and the memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from m2kit.host import (
    available_bytes,
    available_cores,
    model_name,
    peak_bytes,
    process_rank,
    resident_bytes,
)

SCRIPT = """
import numpy as np
from pathlib import Path
from m2kit.host import release_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

parts, pins = [], []
for _ in range(2_000):  # below glibc's threshold for memory of its own, with small ones between
    parts.append(np.ones(12_000, np.float64))
    pins.append(np.ones(100, np.float64))
full = resident()
del parts
release_freed_memory()
print(full, resident())
"""


def test_freed_memory_goes_back_to_the_system():
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    full, after = (int(value) * resource.getpagesize() for value in done.stdout.split())
    assert full - after > 0.8 * 2_000 * 12_000 * 8


RESIDENT_SCRIPT = """
import numpy as np
from m2kit.host import peak_bytes, resident_bytes

before = resident_bytes()
held = np.ones(25_000_000, np.float64)
while_held = resident_bytes()
del held  # so large an array goes back to the system at once
print(before, while_held, resident_bytes(), peak_bytes())
"""


def test_resident_memory_rises_and_falls_with_an_array_and_its_peak_stays():
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT_SCRIPT], capture_output=True, text=True, check=True
    )
    before, held, after, peak = map(int, done.stdout.split())
    slack = 20_000_000
    assert abs(held - before - 200_000_000) < slack
    assert abs(after - before) < slack
    assert abs(peak - held) < slack  # the kernel's counters lag a little behind one another


def test_memory_is_unknown_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("m2kit.host._STATUS_FILE", tmp_path / "none")
    assert resident_bytes() is None and peak_bytes() is None
    (tmp_path / "status").write_text("VmPeak:\t 7 kB\nVmHWM:\t      12 kB\n")
    monkeypatch.setattr("m2kit.host._STATUS_FILE", tmp_path / "status")
    assert resident_bytes() is None and peak_bytes() == 12 * 1024


def test_available_memory_is_read_off_the_system(tmp_path, monkeypatch):
    text = (
        "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:   30 kB\nSwapTotal: 50 kB\nSwapFree:  5 kB\n"
    )
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr("m2kit.host._MEMORY_FILE", tmp_path / "meminfo")
    assert available_bytes() == 35 * 1024
    monkeypatch.setattr("m2kit.host._MEMORY_FILE", tmp_path / "none")
    assert available_bytes() is None


@pytest.fixture
def four_processors(monkeypatch, tmp_path):
    """Four hardware threads of two cores, of which a process may use all; no quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    return tmp_path


def quota(folder, text):
    path = folder / "cpu.max"
    path.write_text(text)
    return path


def test_hardware_threads_of_one_core_count_once(four_processors):
    assert available_cores(four_processors, quota(four_processors, "max 100000\n")) == 2


def test_processors_count_one_by_one_where_the_system_tells_no_topology(four_processors):
    assert available_cores(four_processors / "none", four_processors / "none") == 4


@pytest.mark.parametrize(
    ("text", "cores"), [("100000 100000\n", 1), ("150000 100000\n", 2), ("900000 100000\n", 2)]
)
def test_a_containers_quota_is_an_upper_limit(four_processors, text, cores):
    assert available_cores(four_processors, quota(four_processors, text)) == cores


def test_a_quota_below_one_processor_leaves_one_core(four_processors):
    assert available_cores(four_processors, quota(four_processors, "1000 100000\n")) == 1


def test_processors_outside_the_affinity_do_not_count(four_processors, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3}, raising=False)
    assert available_cores(four_processors, four_processors / "none") == 1


def test_the_processors_name_is_read_and_may_be_missing(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu\n")
    assert model_name(path) == "Some CPU @ 2 GHz"
    path.write_text("processor\t: 0\n")
    assert model_name(path) == model_name(tmp_path / "none") == "unknown"


@pytest.mark.parametrize(
    ("told", "rank"),
    [({}, 0), ({"RANK": "5", "LOCAL_RANK": "1"}, 5), ({"LOCAL_RANK": "1"}, 1), ({"RANK": "x"}, 0)],
)
def test_a_launcher_tells_which_process_this_is(monkeypatch, told, rank):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank
