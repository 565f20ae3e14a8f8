"""Every hostile command ends soon, with one line or a sound output, and touches nothing of others.
A choice here; all of them by `make test-hostile`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from PIL import Image

import m2kit
from hostile import cases, files, forks
from m2kit.token_file import token_file_from_ids, write_tokens

_MOST_SECONDS = 10
_IN_EVERY_RUN = 50  # of each kind
_CACHES = (("home", ".cache"), ("home", ".config"))  # ours, and matplotlib's
_ENDS = (0, 1, 2, 130, 143)
_SIGNALLED = (-1, -2, -9, -15, 124, 129, 137, 143)  # of the shell's own making


class World:
    """A folder with a model, and one below with things of others, in which commands are run."""

    def __init__(self, folder, bundle, engine):
        self.folder, self.work, self.home = folder, folder / "work", folder / "home"
        shutil.copytree(bundle, folder / "m.bundle")
        shutil.copytree(engine, folder / "m.engine")
        shutil.copy(GOLDEN / "ar_tiny.ckpt", folder / "m.ckpt")
        self.home.mkdir()
        self.work.mkdir()
        for name in (forks.OUT, forks.ERR):
            (folder / name).touch()
        cases.make_place(self.work)
        make_inputs(self.work, engine)
        self.environment = {
            **os.environ, "HOME": str(self.home), "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")
        }  # fmt: skip
        self.server = subprocess.Popen(
            [sys.executable, forks.__file__],
            env=self.environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def run(self, case):
        """What went wrong with a case; nothing, where it went as it should."""
        case.prepare(self.work)
        before = self.things()
        if case.shell:
            status, seconds = self.in_a_shell(case)
        else:
            request = [str(self.work), dict(case.environment), case.arguments, _MOST_SECONDS]
            self.server.stdin.write(json.dumps(request) + "\n")
            self.server.stdin.flush()
            status, seconds = json.loads(self.server.stdout.readline())
        after = self.things()
        wrong = [
            *self.of_the_end(case, status, seconds),
            *self.of_things(case, before, after, status),
        ]
        for path in sorted(set(after) - set(before), reverse=True):
            remove(path)
        for name in ("p.png", "p.jpg", "p.gif", "p.webp", "p.tiff", "u.npz"):
            remove(self.work / name)
        return wrong

    def in_a_shell(self, case):
        began = time.monotonic()
        command = [sys.executable, "-m", "m2kit", *case.arguments]
        with (
            (self.folder / forks.OUT).open("wb") as out,
            (self.folder / forks.ERR).open("wb") as error,
        ):
            process = subprocess.Popen(
                ["/bin/bash", "-c", case.shell, "m2kit", *command],
                cwd=self.work,
                env=self.environment | dict(case.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                start_new_session=True,
            )
            try:
                status = process.wait(_MOST_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                status = None
        return status, time.monotonic() - began

    def things(self):
        """All that is there, by path: links' targets, files' bytes."""
        found = {}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder).parts
            if inside[0] in (forks.OUT, forks.ERR) or inside[:2] in _CACHES:
                continue
            if path.is_symlink():
                found[path] = os.readlink(path)
            elif path.is_file():
                status = path.stat()
                own = inside[0].startswith("m.")  # the model: large, and its weights hashed before
                data = b"" if own else path.read_bytes()
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, data)
            else:
                found[path] = path.lstat().st_mode
        return found

    def of_the_end(self, case, status, seconds):
        error = (self.folder / forks.ERR).read_text(errors="surrogateescape")
        if status is None:
            yield f"still ran after {seconds:.0f} s"
            return
        if _of_python_alone(case, error):
            return
        if "Traceback" in error or "Error ignored" in error or "Exception ignored" in error:
            yield f"a traceback: {error[-600:]}"
        if case.shell:
            if status not in (*_ENDS, *_SIGNALLED):
                yield f"exit status {status}: {error[-300:]}"
            return
        if status not in _ENDS:
            yield f"exit status {status}: {error[-300:]}"
        if case.refused is not None and case.refused != (status != 0):
            yield f"exit status {status}, expected it {'' if case.refused else 'not '}to be refused"
        if status:
            lines = error.strip("\n").splitlines() or [""]
            if not lines[-1].lower().startswith("error: ") and status == 1:
                yield f"no error line: {error[-300:]!r}"
            if len(lines[-1]) > 1300:
                yield f"a line of {len(lines[-1])} characters: {lines[-1][:200]}"
            if status == 1 and len([x for x in lines if x.lower().startswith("error: ")]) > 1:
                yield f"several errors: {error[-300:]}"

    def of_things(self, case, before, after, status):
        for path, what in before.items():
            if path not in after:
                yield f"{path} is gone"
            elif after[path] != what:
                yield f"{path} was changed"
        new = [p for p in after if p not in before]
        if new and status and not case.shell:  # a grid that is whole stays if stdout is full
            yield f"left behind: {new[:3]}"
        if any(".m2kit-" in p.name for p in new):
            yield f"left behind: {new[:3]}"


def _of_python_alone(case, error):
    """Whether an interrupt came while Python itself was starting, or loaded what m2kit begins with:
    nothing of m2kit's can heed it then."""
    early = case.shell.startswith("timeout -s INT") and error.endswith("KeyboardInterrupt\n")
    return early and "m2kit/cli" not in error


def make_inputs(folder, engine):
    """The sound picture and token file that right commands read."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    with m2kit.open_engine(engine) as opened:
        ids = opened.sample([1], m2kit.Sampling())
        write_tokens(folder / "t.npz", token_file_from_ids(ids, opened.spec))


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def world(exported, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    bundle, engine = exported(GOLDEN / "ar_tiny.ckpt", heads=4)
    world = World(tmp_path_factory.mktemp("world"), bundle, engine)
    yield world
    world.close()


def of_kind(kind, world):
    """All cases of a kind."""
    with np.load(world.work / "t.npz") as file:
        tokens = dict(file)
    made = {
        "options": cases.options,
        "paths": cases.paths,
        "pictures": files.pictures,
        "token_files": lambda: files.token_files(tokens),
        "environments": cases.environments,
    }
    return list(made[kind]())


KINDS = ("options", "paths", "pictures", "token_files", "environments")


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_commands(world, kind, request):
    made = of_kind(kind, world)
    if not request.config.getoption("--all-cases"):
        made = made[:: max(1, len(made) // _IN_EVERY_RUN)]
    wrong = {case.name: found for case in made if (found := world.run(case))}
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


def test_there_are_enough_of_them(world):
    names = [case.name for kind in KINDS for case in of_kind(kind, world)]
    assert len(set(names)) >= 1500
