"""An engine on a machine that lacks it: copied once, whole, and opened as any other."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import m2kit
from m2kit.errors import FolderError
from m2kit.manifest import ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.runtime.engine_copies import EngineSource, engine_here, source_of


@pytest.fixture
def source(digits_engine):
    return source_of(digits_engine, read_manifest(digits_engine, ENGINE))


@pytest.fixture
def elsewhere(source):
    """The same engine as another machine sees it, at a path that is not there."""
    return EngineSource("/nowhere/digits.engine", source.sizes, source.sha256)


class Reader:
    """Reads the engine's files, and counts what is asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, name, offset, count):
        self.asked.append((name, offset))
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(min(count, 1 << 20))  # less than asked for is as well


def test_an_engine_whose_path_is_here_is_used_in_place(digits_engine, source, tmp_path):
    read = Reader(digits_engine)
    assert engine_here(source, read, tmp_path) == digits_engine.resolve()
    assert read.asked == [] and list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_here_is_copied_and_opens(digits_engine, elsewhere, tmp_path):
    read = Reader(digits_engine)
    copy = engine_here(elsewhere, read, tmp_path / "engines")
    assert copy == tmp_path / "engines" / f"{elsewhere.sha256}.engine"
    for path in digits_engine.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    with m2kit.open_engine(copy) as engine, m2kit.open_engine(digits_engine) as own:
        assert engine.sample([3]).tolist() == own.sample([3]).tolist()


def test_workers_of_one_machine_copy_an_engine_once(digits_engine, elsewhere, tmp_path):
    class Slowly(Reader):
        def __call__(self, *which):
            time.sleep(0.005)
            return super().__call__(*which)

    read = Slowly(digits_engine)
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: engine_here(elsewhere, read, tmp_path), range(4)))
    assert len(copies) == 1 and len(set(read.asked)) == len(read.asked)


def test_another_engine_at_the_path_is_not_taken_for_it(digits_engine, source, tmp_path):
    other = EngineSource(source.path, source.sizes, "0" * 64)
    assert engine_here(other, Reader(digits_engine), tmp_path).parent == tmp_path


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: bytes(len(content))]
)
def test_a_damaged_copy_is_made_again_and_a_whole_one_is_not(
    digits_engine, elsewhere, tmp_path, damage
):
    copy, read = engine_here(elsewhere, Reader(digits_engine), tmp_path), Reader(digits_engine)
    assert engine_here(elsewhere, read, tmp_path) == copy and read.asked == []
    weights = copy / "weights.bin"
    content = weights.read_bytes()
    weights.write_bytes(damage(content))
    assert engine_here(elsewhere, read, tmp_path) == copy
    assert weights.read_bytes() == content
    m2kit.open_engine(copy).close()


def test_a_cache_that_cannot_be_written_is_one_line(digits_engine, elsewhere, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot keep a copy of the engine"):
        engine_here(elsewhere, Reader(digits_engine), tmp_path / "file")
