"""What generate, decode and reconstruct write, and what is left when they are stopped."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import picture
from PIL import Image

from m2kit import __version__
from m2kit.cli import cli, generating, imaging
from m2kit.runtime.saving import notes_of_png


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def m2kit(here, digits_engine):
    """Runs a command that uses the digits engine in this process."""

    def run(name, *arguments, status=0):
        words = [name, "--engine", str(digits_engine), *map(str, arguments)]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    return run


def test_a_picture_tells_how_it_was_drawn(m2kit, digits_engine):
    m2kit("generate", "--class", "5,3", "-n", 2, "--seed", 7, "--top-k", 9, "-o", "some")
    notes = notes_of_png("some/00003_000001.png")
    assert (notes["class"], notes["image_number"]) == (3, 3 * 2**32 + 1)
    assert notes["sampling"]["seed"] == 7
    assert notes["sampling"]["guidance"] == [2.0, 2.0]  # the model's own, filled in
    assert notes["sampling"]["top_k"] == [9, 9]
    assert notes["software"] == f"m2kit {__version__}"
    about = json.loads((digits_engine / "engine.json").read_text())
    assert notes["engine"] == about["name"]
    assert notes["checkpoint_sha256"] == about["source"]["checkpoint_sha256"]
    m2kit("generate", "--class", "5,3", "-n", 2, "--first-image", 4, "-o", "grid.png")
    of_grid = notes_of_png("grid.png")
    assert of_grid["classes"] == [5, 3]
    assert (of_grid["first_image"], of_grid["images_per_class"]) == (4, 2)


def test_the_same_command_gives_the_same_bytes(m2kit, here):
    for name in ("a", "b"):
        m2kit("generate", "--class", 1, "-n", 2, "-o", f"{name}.png")
        m2kit("generate", "--class", 1, "-n", 2, "-o", name)
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert (here / "a/00001_000001.png").read_bytes() == (here / "b/00001_000001.png").read_bytes()


def test_columns_and_the_kind_of_file_are_the_users(m2kit):
    m2kit("generate", "--class", "2", "-n", 5, "--columns", 2, "-o", "a.webp", "--tokens", "t.npz")
    m2kit("decode", "t.npz", "--columns", 2, "-o", "b.png")
    assert picture("a.webp").shape == (3 * 34 - 2, 2 * 34 - 2, 3)
    np.testing.assert_array_equal(picture("a.webp"), picture("b.png"))
    m2kit("reconstruct", "a.webp", "b.png", "a.webp", "--pad", "--columns", 2, "-o", "c.jpg")
    assert picture("c.jpg").shape == (4 * 102 - 2, 2 * 68 - 2, 3)
    with Image.open("c.jpg") as image:
        assert image.format == "JPEG"


def test_a_grid_too_large_is_refused_before_anything_is_drawn(m2kit, here):
    done = m2kit("generate", "-n", 1_000_000_000, status=1)
    assert "write each into a folder (-o NAME, without suffix)" in done.output
    assert "drawing" not in done.output
    assert list(here.iterdir()) == []


def test_decoding_and_reconstructing_into_a_folder_gives_what_the_grid_shows(m2kit, here):
    m2kit("generate", "--class", "2,4", "-n", 2, "--tokens", "t.npz", "-o", "drawn")
    m2kit("decode", "t.npz", "-o", "decoded", "--batch", 3)
    drawn, decoded = (sorted((here / name).iterdir()) for name in ("drawn", "decoded"))
    assert [path.name for path in decoded] == [f"00000{i}.png" for i in range(4)]
    for one, other in zip(drawn, decoded, strict=True):
        np.testing.assert_array_equal(picture(one), picture(other))
    m2kit("reconstruct", *drawn, "-o", "rebuilt")
    m2kit("reconstruct", *drawn, "-o", "grid.png")
    rebuilt = sorted((here / "rebuilt").iterdir())
    assert rebuilt[2].name == "000002_00004_000000.png"
    shown = picture("grid.png")[34:66, 2 * 34 : 2 * 34 + 32]
    np.testing.assert_array_equal(picture(rebuilt[2]), shown)


def test_what_a_folder_has_is_not_drawn_again_if_it_was_drawn_just_so(m2kit, here):
    command = ("generate", "--class", "1,2", "-n", 3, "--json", "-o", "some")
    m2kit(*command)
    files = sorted((here / "some").iterdir())
    whole = {path: path.read_bytes() for path in files}
    times = {path: path.stat().st_mtime_ns for path in files}
    files[1].unlink()
    value = json.loads(m2kit(*command).stdout)
    assert (value["images"], value["there_before"]) == (6, 5)
    assert {path: path.read_bytes() for path in sorted((here / "some").iterdir())} == whole
    assert [path for path in files if path.stat().st_mtime_ns != times[path]] == [files[1]]
    for change in (["--first-image", 3], ["--tokens", "t.npz"]):
        assert json.loads(m2kit(*command, *change).stdout)["there_before"] is None
    assert {path: path.read_bytes() for path in files} == whole


def contents(folder):
    """Of every file: its bytes and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_no_picture_of_others_is_overwritten(m2kit, here):
    command = ("generate", "--class", "1,2", "-n", 2, "-o", "some")
    m2kit(*command)
    before = contents(here / "some")
    for change in (["--seed", 1], ["--guidance", 3], ["--tokens", "t.npz", "--top-k", 3]):
        done = m2kit(*command, *change, status=1)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: some/00001_000000.png is another picture than")
        assert line.endswith("is not overwritten; choose another folder (-o)")
        assert contents(here / "some") == before
    (here / "some/00002_000001.png").unlink()
    Image.new("RGB", (32, 32)).save(here / "some/00002_000001.png")  # somebody's own
    (here / "some/00001_000000.png").unlink()
    before = contents(here / "some")
    assert "some/00002_000001.png is another picture" in m2kit(*command, status=1).stderr
    assert contents(here / "some") == before
    assert not (here / "t.npz").exists()


@pytest.mark.parametrize(
    ("name", "mine"), [("decode", "000001.png"), ("reconstruct", "000001_000001.png")]
)
def test_decode_and_reconstruct_overwrite_nothing_in_a_folder(m2kit, here, name, mine):
    (here / "frames").mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (80 * index, 0, 0)).save(here / f"frames/{index:06d}.png")
    m2kit("encode", "frames", "-o", "t.npz")
    given = {"decode": "t.npz", "reconstruct": "frames"}[name]
    kept = here / "kept"
    kept.mkdir()
    (kept / mine).symlink_to("nowhere")
    (kept / "notes.txt").write_text("mine")
    told = f"kept/{mine} is there already and is not overwritten; choose another folder (-o)"
    assert told in m2kit(name, given, "-o", "kept", status=1).stderr
    assert sorted(path.name for path in kept.iterdir()) == sorted([mine, "notes.txt"])
    assert (kept / mine).is_symlink()
    m2kit(name, given, "-o", "made")


def test_what_is_read_is_not_written(m2kit, here):
    (here / "frames").mkdir()
    Image.new("RGB", (32, 32)).save(here / "frames/a.png")
    (here / "link.png").symlink_to("frames/a.png")
    before = contents(here / "frames")
    for given, output in (("frames", "frames"), ("frames", "link.png"), ("link.png", "link.png")):
        assert "is what is read; choose another output (-o)" in (
            m2kit("reconstruct", given, "-o", output, status=1).stderr
        )
    assert contents(here / "frames") == before
    m2kit("encode", "frames", "-o", "t.npz")
    command = ["convert-tokens", "t.npz", "--bits", "8", "--bit-order", "lsb", "-o", "t.npz"]
    assert "t.npz is what is read" in CliRunner().invoke(cli, command).stderr


def test_a_folder_with_a_suffix_is_told_how_folders_are_named(m2kit, here):
    (here / "my.pics").mkdir()
    done = m2kit("generate", "-o", "my.pics", status=1)
    assert "ending in .png, .jpg, .jpeg, .webp, or a folder's, which has no suffix" in done.stderr


def interrupted_after(batches):
    """In place of draw_images: Ctrl-C when so many batches are drawn."""
    real = generating.draw_images

    def draw(*arguments, **options):
        for index, drawn in enumerate(real(*arguments, **options)):
            if index == batches:
                raise KeyboardInterrupt
            yield drawn

    return draw


def test_an_interrupted_drawing_tells_what_is_finished_and_the_same_command_goes_on(
    m2kit, here, monkeypatch
):
    command = ("generate", "--class", "1,2", "-n", 3, "--batch", 2, "-o", "some")
    with monkeypatch.context() as patch:
        patch.setattr(generating, "draw_images", interrupted_after(2))
        done = m2kit(*command, status=130)
        again = m2kit(*command, "--tokens", "t.npz", status=130)
    assert "4 of 6 images are finished in some. Give the same command again to go" in done.stderr
    assert "again to draw all; without --tokens it goes on" in again.stderr
    assert len(list((here / "some").iterdir())) == 4
    assert json.loads(m2kit(*command, "--json").stdout)["there_before"] == 4
    m2kit(*command[:-1], "grid.png")
    shown = picture("grid.png")
    for row, column in np.ndindex(2, 3):
        own = picture(f"some/0000{row + 1}_00000{column}.png")
        top, left = row * 34, column * 34
        np.testing.assert_array_equal(own, shown[top : top + 32, left : left + 32])


def test_an_interrupted_grid_is_not_written_and_says_so(m2kit, here, monkeypatch):
    monkeypatch.setattr(generating, "draw_images", interrupted_after(1))
    done = m2kit("generate", "--class", 1, "-n", 3, "--batch", 2, status=130)
    assert "2 of 3 images are finished, none was written" in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["decode", "reconstruct"])
def test_the_other_commands_are_interrupted_likewise(m2kit, monkeypatch, name):
    m2kit("generate", "--class", 1, "-n", 3, "--tokens", "t.npz", "-o", "drawn.png")
    m2kit("decode", "t.npz", "-o", "some")
    stopped = iter([False, True])

    def cropped(images, size):
        if next(stopped):
            raise KeyboardInterrupt
        return images

    monkeypatch.setattr(imaging, "cropped", cropped)
    given = {"decode": "t.npz", "reconstruct": "some"}[name]
    done = m2kit(name, given, "--batch", 1, "-o", "made", status=130)
    assert (
        "1 of 3 images are finished in made. Give the same command again with another folder"
        in done.stderr
    )


def test_a_folder_is_encoded_in_the_order_of_names_and_in_any_batches(m2kit, here):
    m2kit("generate", "--class", "2,4", "-n", 2, "--tokens", "t.npz", "-o", "drawn")
    names = sorted((here / "drawn").iterdir())
    m2kit("encode", "drawn", "-o", "a.npz", "--batch", 3)
    m2kit("encode", *names, "-o", "b.npz")
    for one, other in zip(*(np.load(name).values() for name in ("a.npz", "b.npz")), strict=True):
        np.testing.assert_array_equal(one, other)
    m2kit("reconstruct", "drawn", "-o", "a.png", "--batch", 3)
    m2kit("reconstruct", *names, "-o", "b.png")
    np.testing.assert_array_equal(picture("a.png"), picture("b.png"))


def test_pictures_of_several_sizes_are_taken_with_resize(m2kit, here):
    (here / "some").mkdir()
    for index, size in enumerate([(50, 70), (64, 40)]):
        Image.new("RGB", size, "red").save(here / f"some/{index}.png")
    done = m2kit("encode", "some", status=1)
    assert "some/1.png has 40 x 64; scale them to one (--resize)" in done.stderr
    m2kit("reconstruct", "some", "-o", "made", status=1)
    assert not (here / "made").exists()
    value = json.loads(m2kit("encode", "some", "--resize", 32, "--json").stdout)
    assert (value["images"], value["grid"]) == (2, [4, 4])
    m2kit("reconstruct", "some", "--resize", 32, "-o", "made")
    assert [path.name for path in sorted((here / "made").iterdir())] == [
        "000000_0.png",
        "000001_1.png",
    ]


def test_ctrl_c_leaves_whole_pictures_and_nothing_else(digits_engine, here):
    command = [
        *(sys.executable, "-m", "m2kit", "generate", "--engine", str(digits_engine)),
        *("--class", "1", "-n", "100000", "--batch", "2", "-o", "many"),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while len(list(here.glob("many/[0-9]*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    files = list((here / "many").iterdir())
    finished = re.search(r"(\d+) of 100000 images are finished in many", told)
    assert len(files) - int(finished.group(1)) in (0, 1), told  # one may be there and not counted
    assert "Traceback" not in told
    for path in files:
        assert picture(path).shape == (32, 32, 3)
