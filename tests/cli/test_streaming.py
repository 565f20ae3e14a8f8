"""generate into a folder: each image as soon as its batch is finished."""

import json
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
from click.testing import CliRunner
from conftest import picture, run_m2kit

from m2kit.cli import cli, generating


def draw(engine, cwd, *more, **options):
    return run_m2kit(
        "generate", "--engine", engine, "--seed", "5", *more, cwd=cwd, **options
    )  # fmt: skip


def test_a_folder_holds_what_the_grid_shows(digits_engine, tmp_path):
    draw(digits_engine, tmp_path, "--class", "3,7", "-n", "3", "-o", "grid.png")
    common = ("--class", "3,7", "-n", "3", "--first-image", "0", "--json", "--tokens", "t.npz")
    done = draw(digits_engine, tmp_path, *common, "--batch", "4", "-o", "images")
    value = json.loads(done.stdout)
    assert value["image_numbers"] == [[c * 2**32, c * 2**32 + 2] for c in (3, 7)]
    assert value["images"] == 6 and value["images_per_second"] > 0
    assert value["peak_memory_bytes"] > 1e7
    paths = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in paths] == [
        *(f"00003_00000{i}.png" for i in range(3)),
        *(f"00007_00000{i}.png" for i in range(3)),
    ]
    grid, side = picture(tmp_path / "grid.png"), picture(paths[0]).shape[0]
    gap = (grid.shape[0] - 2 * side) // 1
    for index, path in enumerate(paths):
        top, left = (index // 3) * (side + gap), (index % 3) * (side + gap)
        shown = grid[top : top + side, left : left + side]
        np.testing.assert_array_equal(picture(path), shown)
    assert np.load(tmp_path / "t.npz")["ids"].shape == (6, 4, 4, 2)


def test_what_is_finished_stays_when_the_command_is_killed(digits_engine, tmp_path):
    command = [
        *(sys.executable, "-m", "m2kit", "generate", "--engine", str(digits_engine)),
        *("--class", "1", "-n", "100000", "--batch", "2", "-o", "many"),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("many/00001_*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = sorted(tmp_path.glob("many/00001_*.png"))
    assert len(found) >= 4
    for path in found:
        assert picture(path).ndim == 3


def test_images_are_let_go_as_soon_as_they_are_written(digits_engine, tmp_path, monkeypatch):
    drawn_batches, most_alive = [], 0
    real = generating.draw_images

    def watched(*arguments, **options):
        nonlocal most_alive
        for drawn in real(*arguments, **options):
            drawn_batches.append(weakref.ref(drawn.images))
            yield drawn
            most_alive = max(most_alive, sum(batch() is not None for batch in drawn_batches))

    monkeypatch.setattr(generating, "draw_images", watched)
    arguments = ["generate", "--engine", str(digits_engine), "--class", "1", "-n", "12"]
    done = CliRunner().invoke(cli, [*arguments, "--batch", "2", "-o", str(tmp_path / "images")])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "images").iterdir())) == 12
    assert len(drawn_batches) == 6 and most_alive <= 2  # the last one and the one before


def test_a_folder_that_cannot_be_is_refused_before_anything_is_drawn(digits_engine, tmp_path):
    (tmp_path / "taken").write_text("")
    done = draw(digits_engine, tmp_path, "--class", "1", "-o", "taken", check=False)
    assert done.returncode == 1 and "taken" in done.stderr
    assert "drawing" not in done.stderr
