import os
import subprocess
import sys

import pytest

from m2kit.errors import FolderError
from m2kit.folders import check_output, new_file, new_folder


@pytest.fixture
def dead_pid():
    """The process number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(path, text="new"):
    with new_folder(path, "bundle.json") as folder:
        (folder / "bundle.json").write_text(text)


def test_a_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "x.bundle"
    with new_folder(target, "bundle.json") as folder:
        (folder / "bundle.json").write_text("{}")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["bundle.json"]
    assert [p.name for p in target.parent.iterdir()] == ["x.bundle"]


def test_an_error_leaves_nothing_and_keeps_the_old_one(tmp_path):
    target = tmp_path / "x.bundle"
    make(target, "old")
    with pytest.raises(RuntimeError), new_folder(target, "bundle.json") as folder:
        (folder / "bundle.json").write_text("new")
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]
    make(target)
    assert (target / "bundle.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_never_replaced(tmp_path, kind):
    target = tmp_path / "x.bundle"
    if kind == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "precious").write_text("precious")
    with pytest.raises(FolderError, match="will not be replaced"):
        make(target)
    assert target.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


def test_leftovers_of_a_dead_run_are_removed_and_of_a_living_one_kept(tmp_path, dead_pid):
    dead = tmp_path / f".x.bundle.tmp-{dead_pid}"
    living = tmp_path / f".x.bundle.tmp-{os.getppid()}"
    for path in (dead, living):
        path.mkdir()
    make(tmp_path / "x.bundle")
    assert not dead.exists()
    assert living.exists()


def test_a_run_killed_between_its_two_renames_gives_the_old_folder_back(tmp_path, dead_pid):
    target = tmp_path / "x.bundle"
    make(target, "old")
    target.rename(tmp_path / f".x.bundle.tmp-{dead_pid}-old")
    with pytest.raises(RuntimeError), new_folder(target, "bundle.json"):
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "old"


def test_a_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    with pytest.raises(RuntimeError), new_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with new_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_path_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="choose another output"):
        make(tmp_path / "file" / "x.bundle")
    with pytest.raises(FolderError, match="choose another"), new_file(tmp_path / "file" / "a.png"):
        pass


def test_an_output_is_checked_before_work_is_spent_on_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    check_output(tmp_path / "new" / "deep" / "a.png", ".png")
    for name, words in (
        ("a.jpg", r"ending in \.png"),
        ("folder.png", "is a folder"),
        ("file/a.png", "not a writable folder"),
    ):
        with pytest.raises(FolderError, match=words):
            check_output(tmp_path / name, ".png")


def test_a_dead_runs_half_written_file_is_removed(tmp_path, dead_pid):
    (tmp_path / f".a.tmp-{dead_pid}.png").write_text("half")
    with new_file(tmp_path / "a.png") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
