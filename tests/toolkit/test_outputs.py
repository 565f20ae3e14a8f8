import ctypes
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2kit import outputs
from m2kit.errors import FolderError
from m2kit.outputs import (
    check_output,
    check_output_file,
    check_output_folder,
    is_leftover,
    new_file,
    new_folder,
)

MARK = "m2kit-0123456789abcdef0123456789abcdef"
STRANGERS = (".notes.tmp-999999.txt", ".work.tmp-999999.d", ".x.m2kit-12.txt", "x.m2kit", ".m2kit")


def check(folder):
    if not (folder / "bundle.json").is_file():
        raise FolderError(f"{folder} exists and will not be replaced")


def make(path, text="new"):
    with new_folder(path, check) as folder:
        (folder / "bundle.json").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def another_process():
    """Leftovers are looked for once a process and folder."""
    outputs._remove_leftovers.cache_clear()


@pytest.fixture
def running():
    """Starts a process that is inside a block and says its temporary path, and ends it."""
    started = []

    def start(block, prefix=()):
        script = (
            "import time\nfrom pathlib import Path\nfrom m2kit.outputs import *\n"
            f"with {block} as path:\n    print(path, flush=True)\n    time.sleep(60)\n"
        )
        command = [*prefix, sys.executable, "-c", script]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        return process, Path(process.stdout.readline().decode().strip())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "x.bundle"
    with new_folder(target, check) as folder:
        (folder / "bundle.json").write_text("{}")
        assert not target.exists() and is_leftover(folder.name)
    assert names(target) == ["bundle.json"]
    assert names(target.parent) == ["x.bundle"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_an_error_leaves_nothing_and_keeps_the_old_one(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: None)
    target = tmp_path / "x.bundle"
    make(target, "old")
    with pytest.raises(RuntimeError), new_folder(target, check) as folder:
        (folder / "bundle.json").write_text("new")
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x.bundle"]
    make(target)
    assert (target / "bundle.json").read_text() == "new"
    assert names(tmp_path) == ["x.bundle"]


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
    assert names(tmp_path) == ["x.bundle"]


def test_what_came_while_it_was_written_is_not_replaced_either(tmp_path):
    target = tmp_path / "x.bundle"
    with (
        pytest.raises(FolderError, match="will not be replaced"),
        new_folder(target, check) as folder,
    ):
        (folder / "bundle.json").write_text("new")
        target.mkdir()
        (target / "precious").write_text("precious")
    assert names(target) == ["precious"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    make(tmp_path / "real" / "v1.bundle", "old")
    (tmp_path / "latest.bundle").symlink_to("real/v1.bundle")
    make(tmp_path / "latest.bundle")
    (tmp_path / "a.png").symlink_to("real/stored")
    with new_file(tmp_path / "a.png") as path:
        assert path.suffix == ".png" and path.parent == tmp_path / "real"
        path.write_text("picture")
    assert os.readlink(tmp_path / "latest.bundle") == "real/v1.bundle"
    assert (tmp_path / "real" / "v1.bundle" / "bundle.json").read_text() == "new"
    assert (tmp_path / "real" / "stored").read_text() == "picture"
    assert names(tmp_path) == ["a.png", "latest.bundle", "real"]
    assert names(tmp_path / "real") == ["stored", "v1.bundle"]


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, direct):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(FolderError, match="no regular file"), new_file(tmp_path / "circle.png"):
        pass
    name = "pipe.png" if direct else "link.png"
    with (
        pytest.raises(FolderError, match=r"pipe\.png is no regular file"),
        new_file(tmp_path / name),
    ):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)
    assert names(tmp_path) == ["circle.png", "link.png", "pipe.png"]


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
    assert names(tmp_path) == ["a.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_a_name_as_long_as_a_name_can_be(tmp_path):
    name = "ä" * 120 + ".png"
    with new_file(tmp_path / name) as path:
        path.write_text("new")
    make(tmp_path / ("ä" * 127))
    make(tmp_path / ("ä" * 127))
    assert names(tmp_path) == sorted([name, "ä" * 127])


def test_what_dead_runs_left_is_removed_and_what_others_have_is_not(tmp_path, running):
    for name in STRANGERS:
        (tmp_path / name).write_text("precious")
    (tmp_path / f".link.{MARK}").symlink_to(tmp_path / STRANGERS[0])
    os.mkfifo(tmp_path / f".pipe.{MARK}")
    dead, folder = running(f"new_folder(Path({str(tmp_path / 'x')!r}), print)")
    (folder / "weights.bin").write_text("half")
    dead.kill()
    dead.wait()
    _, file = running(f"new_file(Path({str(tmp_path / 'a.png')!r}))")
    living = {file.name}
    kept = {*STRANGERS, f".link.{MARK}", f".pipe.{MARK}", *living}
    for _ in range(2):
        outputs._remove_leftovers.cache_clear()
        with new_file(tmp_path / "a.png") as temporary:
            temporary.write_text("whole")
        assert set(names(tmp_path)) == kept | {"a.png"}


def test_another_users_leftover_stops_nobody(tmp_path, monkeypatch):
    """As in a sticky folder, where one may look at it and lock it, but not remove it."""
    leftover = tmp_path / f".x.{MARK}.png"
    leftover.write_text("half")

    def refuse(self, **_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with new_file(tmp_path / "a.png") as path:
            path.write_text("whole")
    assert (tmp_path / "a.png").read_text() == "whole" and leftover.exists()


def test_a_run_killed_between_its_two_renames_gives_the_old_folder_back(tmp_path):
    target = tmp_path / "x.bundle"
    make(target, "old")
    target.rename(tmp_path / f".x.bundle.{MARK}.replaced")
    outputs._remove_leftovers.cache_clear()
    with pytest.raises(RuntimeError), new_folder(target, check):
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "old"


def test_a_file_system_without_locks_keeps_leftovers_and_is_written_to(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    (tmp_path / f".x.{MARK}").mkdir()
    make(tmp_path / "x")
    assert names(tmp_path) == [f".x.{MARK}", "x"]


def test_a_path_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="choose another output"):
        make(tmp_path / "file" / "x.bundle")
    with pytest.raises(FolderError, match="choose another"), new_file(tmp_path / "file" / "a.png"):
        pass


NAMESPACE = ("unshare", "-pf", "--mount-proc", "--kill-child")
namespaces = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode,
    reason="needs the right to make process namespaces",
)


@namespaces
def test_containers_that_share_a_folder_leave_each_others_work(tmp_path):
    """Each has its own process ids, so that an id says nothing of who lives."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom m2kit.outputs import new_file\n"
        "for number in range(30):\n"
        "    with new_file(Path(f'{sys.argv[1]}-{number}.txt')) as path:\n"
        "        time.sleep(0.002)\n"
        "        path.write_text('whole')\n"
    )
    runs = [
        subprocess.Popen(
            [*NAMESPACE, sys.executable, "-c", script, tmp_path / str(shard)],
            stderr=subprocess.PIPE,
        )
        for shard in range(4)
    ]
    errors = [run.communicate()[1].decode() for run in runs]
    assert errors == [""] * 4
    expected = [f"{shard}-{number}.txt" for shard in range(4) for number in range(30)]
    assert names(tmp_path) == sorted(expected)


@namespaces
def test_a_run_that_was_process_1_and_killed_blocks_nobody(tmp_path, running):
    block = f"new_folder(Path({str(tmp_path / 'x')!r}), print)"
    container, folder = running(block, NAMESPACE)
    (folder / "half").write_text("half")
    container.kill()  # and with it, its process 1
    container.wait()
    for _ in range(100):
        outputs._remove_leftovers.cache_clear()
        make(tmp_path / "x")
        if names(tmp_path) == ["x"]:
            return
        time.sleep(0.05)  # until the system has let go of the lock
    raise AssertionError(names(tmp_path))


def test_a_folder_that_is_aside_has_a_holder(tmp_path, monkeypatch):
    """Where two renames replace a folder, another run that cleans up leaves the old one."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: None)
    target, rename = tmp_path / "x.bundle", Path.rename
    make(target, "old")

    def rename_and_clean(path, to):
        rename(path, to)
        outputs._remove_leftovers.cache_clear()
        outputs._remove_leftovers(tmp_path)

    monkeypatch.setattr(Path, "rename", rename_and_clean)
    make(target)
    assert (target / "bundle.json").read_text() == "new"
    assert names(tmp_path) == ["x.bundle"]


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


def test_a_folder_to_write_into_is_checked_before_work_is_spent_on_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "deep")
    for name, words in (
        ("file", "is no folder"),
        ("nowhere", "is no folder"),
        ("circle", "is no folder"),
        ("file/run", "not a writable folder"),
        ("x" * 300, "expected names of 255 bytes at most, found one of 300"),
        (f"new/{'é' * 128}", "expected names of 255 bytes at most, found one of 256"),
    ):
        with pytest.raises(FolderError, match=words):
            check_output_folder(tmp_path / name)


def test_a_file_of_any_name_is_checked_before_work_is_spent_on_it(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.pt", "new/b"):
        check_output_file(tmp_path / name)
    for name, words in (("folder", "is a folder"), ("pipe", "no regular file")):
        with pytest.raises(FolderError, match=words):
            check_output_file(tmp_path / name)


def test_a_signal_at_the_moment_a_folder_appears_leaves_nothing(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def mkdir_and_end(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        if is_leftover(path.name):
            raise SystemExit(143)

    monkeypatch.setattr(Path, "mkdir", mkdir_and_end)
    with pytest.raises(SystemExit), new_folder(tmp_path / "x.bundle", lambda path: None):
        pass
    assert not list(tmp_path.iterdir())
