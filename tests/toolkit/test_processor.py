"""What this process may use of the processor."""

import os

import pytest

from m2kit.processor import available_cores, model_name


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
