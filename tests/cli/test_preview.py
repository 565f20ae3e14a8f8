"""generate --preview: what a terminal of each kind is shown, and how it is left."""

import io
import itertools
import re
import weakref
from base64 import b64decode

import numpy as np
import pytest
from conftest import picture, run_m2kit, tiny_spec
from doubles.fake_backend import FakeBackend
from doubles.pty_terminal import PtyTerminal
from PIL import Image
from rich.console import Console

from m2kit import Sampling
from m2kit.cli import preview
from m2kit.cli.preview import Layout, Preview, layout_of
from m2kit.cli.terminal import Terminal, terminal_at
from m2kit.runtime.decoding import Drawn
from m2kit.runtime.drawing import draw_images, filled
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images

QUESTION = b"\x1b_Gi=31"
SHOWN = {
    "kitty": rb"\x1b_Ga=T",
    "iterm": rb"\x1b\]1337;File=",
    "sixel": rb"\x1bP0;1q",
    "24-bit": rb"\x1b\[38;2;",
    "256": rb"\x1b\[38;5;\d+;48;5;",
}


def engine():
    spec = tiny_spec()
    return Engine(spec, FakeBackend(spec))


@pytest.fixture
def shown(monkeypatch):
    """Makes a preview on a terminal of a kind; its size, pictures and clock are attributes."""

    def make(kind="24-bit", size=(80, 24)):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True)
        made = Preview(engine(), console, Terminal("none", kind))
        made.size, made.file, made.pictures, made.clock = size, file, [], itertools.count(100)
        real = made._show

        def show(pixels, began):
            made.pictures.append(pixels)
            real(pixels, began)

        monkeypatch.setattr(made, "_show", show)
        monkeypatch.setattr(Terminal, "measured", lambda terminal: (*made.size, (1, 2)))
        monkeypatch.setattr(preview.time, "monotonic", lambda: next(made.clock))
        made._next = 0
        return made

    return make


def test_images_are_the_same_with_a_preview(shown):
    watched, plain = shown(), engine()
    watched.clock = itertools.count(100, 0.01)
    options = {"sampling": Sampling(seed=1), "batch": 2}
    batches = draw_images(watched.engine, [1], 9, watch=watched.watch, **options)
    for seen, other in zip(batches, draw_images(plain, [1], 9, **options), strict=True):
        watched._next = 0
        np.testing.assert_array_equal(seen.tokens, other.tokens)
        np.testing.assert_array_equal(seen.images, other.images)
    assert len(watched.pictures) == 5  # of the first row of each batch
    assert "\u2580" in watched.file.getvalue()


def test_a_row_of_tokens_is_shown_with_the_rest_filled(shown):
    watched = shown()
    drawn = list(watched.engine.generate([1, 2], Sampling(seed=1)))
    tokens = drawn[-1].tokens
    watched.clock = itertools.count(1000, 50)
    for position in range(6):  # of 2 rows of 3
        watched.watch(Drawn(position, tokens))
    (pictures,) = watched.pictures
    expected = uint8_from_images(watched.engine.decode(filled(tokens, 3)))
    np.testing.assert_array_equal(pictures, expected)


def test_previews_take_a_tenth_of_the_time(shown):
    watched = shown()
    now, decode = [1000.0], watched.engine.decode
    preview.time.monotonic = lambda: now[0]

    def slow(tokens):
        now[0] += 2
        return decode(tokens)

    watched.engine.decode = slow
    tokens = np.zeros((1, 2, 3, 2), np.int64)
    for _ in range(1000):
        now[0] += 0.1
        watched.watch(Drawn(2, tokens))
    assert now[0] == pytest.approx(1100 + 2 * len(watched.pictures))
    assert 5 <= len(watched.pictures) <= 7


def test_only_what_is_shown_is_decoded_and_no_batch_is_held(shown):
    watched = shown(size=(40, 24))
    watched.watch(Drawn(2, np.zeros((50, 2, 3, 2), np.int64)))
    assert [len(pixels) for pixels in watched.pictures] == [2]
    watched.clock = itertools.repeat(0)
    images = np.zeros((50, 3, 4, 6), np.float32)
    watched.finished(images)
    held = weakref.ref(images)
    del images
    assert held() is None and len(watched.pictures) == 1
    watched.show_last()
    assert len(watched.pictures) == 2


def test_pictures_are_drawn_in_place_and_anew_where_the_terminal_has_another_width(shown):
    watched = shown("kitty")
    images = np.zeros((2, 3, 4, 6), np.float32)
    lengths = []
    for size in ((80, 24), (80, 24), (50, 24)):
        watched.size, watched._next = size, 0
        watched.finished(images)
        lengths.append(len(watched.file.getvalue()))
    parts = [watched.file.getvalue()[a:b] for a, b in itertools.pairwise([0, *lengths])]
    first, second = layout_of(2, (4, 6), 80, 24, (1, 2)), layout_of(2, (4, 6), 50, 24, (1, 2))
    assert first != second
    up = f"\x1b8\x1b7\x1b[{first.rows}A\x1b_G"  # from the line of the bar
    assert parts[0].startswith("\n" * first.rows + "\r\x1b7" + up) and parts[0].endswith(
        "\x1b8\x1b7"
    )
    assert parts[1].startswith("\r\x1b7" + up) and parts[1].endswith("\x1b8\x1b7")
    assert f"\x1b8\x1b7\x1b[{first.rows}A\x1b[{first.columns + 1}C\x1b_G" in parts[1]
    numbers = re.findall(r"a=T,f=100,i=(\d+)", parts[1])
    assert numbers == re.findall(r"a=T,f=100,i=(\d+)", parts[0]) and len(set(numbers)) == 2
    assert re.findall(r"a=d,d=I,i=(\d+)", parts[2]) == numbers
    assert parts[2].startswith(f"\x1b[{first.rows}A\r\x1b[J\x1b_Ga=d")
    assert "\n" * second.rows + "\r\x1b7" in parts[2]


@pytest.mark.parametrize(
    ("count", "columns", "lines", "cell", "found"),
    [
        (1, 80, 24, (1, 2), Layout(1, 32, 16)),
        (8, 80, 24, (1, 2), Layout(4, 19, 10)),
        (8, 80, 24, (10, 20), Layout(4, 19, 10)),
        (64, 300, 60, (10, 20), Layout(8, 32, 16)),
        (8, 80, 9, (1, 2), Layout(4, 10, 5)),
        (8, 20, 24, (1, 2), Layout(1, 19, 10)),
        (8, 15, 24, (1, 2), None),
        (8, 80, 4, (1, 2), None),
    ],
)
def test_pictures_fit_the_terminal(count, columns, lines, cell, found):
    assert layout_of(count, (64, 64), columns, lines, cell) == found


def generating(engine, kind, *more, env=(), **options):
    arguments = ["-m", "m2kit", "generate", "--engine", engine, "--class", "3", "--seed", "1"]
    return PtyTerminal([*arguments, "--preview", *more], kind, env=env, **options)


def left_as_it_was(terminal):
    """Modes, cursor, and nothing that the prompt would read."""
    hidden, there = terminal.shown.rfind(b"\x1b[?25l"), terminal.shown.rfind(b"\x1b[?25h")
    return terminal.before == terminal.after and hidden <= there and terminal.unread == b""


ASK = """
import sys, time
from rich.console import Console
from m2kit.cli.terminal import terminal_at
found = terminal_at(Console(stderr=True))
print("found", found and (found.kind, found.cell), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("answers", "env", "asked", "found"),
    [
        ("kitty", {}, True, ("kitty", (10, 20))),
        ("plain", {"TERM_PROGRAM": "iTerm.app"}, True, ("iterm", (8, 16))),
        ("sixel", {}, True, ("sixel", (10, 20))),
        ("plain", {"COLORTERM": "truecolor"}, True, ("24-bit", (8, 16))),
        ("kitty", {"TMUX": "/tmp/t", "TERM": "screen-256color"}, False, ("256", (8, 16))),
        ("kitty", {"NO_COLOR": "1"}, True, ("kitty", (10, 20))),
        ("plain", {"NO_COLOR": "1"}, True, None),
        ("plain", {"TERM": "vt220"}, True, None),
        ("kitty", {"TERM": "dumb"}, False, None),
    ],
)
def test_a_terminal_is_asked_what_it_shows(answers, env, asked, found):
    terminal = PtyTerminal(["-c", ASK, 0], answers, env=env)
    status, shown = terminal.ended()
    assert status == 0 and shown.endswith(f"found {found}\r\n".encode())
    assert (QUESTION in shown) == asked and left_as_it_was(terminal)


def test_answers_that_come_late_do_not_reach_the_prompt():
    terminal = PtyTerminal(["-c", ASK, 1], "silent")
    terminal.until(re.escape(QUESTION))
    terminal.type(b"\x1b[?62")
    terminal.until(rb"found \('256', ")
    terminal.type(b";4;22c")
    assert terminal.ended()[0] == 0 and left_as_it_was(terminal)


def test_kitty_is_shown_what_is_drawn(digits_engine, tmp_path):
    terminal = generating(digits_engine, "kitty", "-n", "4", "-o", "grid.png", cwd=tmp_path)
    status, shown = terminal.ended()
    assert status == 0 and left_as_it_was(terminal)
    grid = picture(tmp_path / "grid.png")
    gap = (grid.shape[1] - 4 * 32) // 3
    last = re.findall(rb"\x1b_Ga=T,f=100,.*?m=0;(.*?)\x1b", shown)[-4:]
    for place, png in enumerate(last):
        left = place * (32 + gap)
        pixels = np.asarray(Image.open(io.BytesIO(b64decode(png))))
        np.testing.assert_array_equal(pixels, grid[:32, left : left + 32])


def test_what_is_drawn_and_printed_is_as_without(digits_engine, tmp_path):
    options = ("-n", "3", "--json", "-o")
    terminal = generating(digits_engine, "sixel", *options, "with.png", cwd=tmp_path)
    status, shown = terminal.ended()
    assert status == 0 and re.search(SHOWN["sixel"], shown)
    assert re.search(rb'{"images": 3, .*}\r\n$', shown)
    arguments = ("generate", "--engine", digits_engine, "--class", "3", "--seed", "1", *options)
    plain = run_m2kit(*arguments, "without.png", cwd=tmp_path)
    no_terminal = run_m2kit(*arguments, "piped.png", "--preview", cwd=tmp_path)
    assert no_terminal.stderr == plain.stderr and "preview" not in plain.stderr
    drawn = [(tmp_path / f"{name}.png").read_bytes() for name in ("with", "without", "piped")]
    assert drawn[0] == drawn[1] == drawn[2]


def test_plain_output_is_left_where_nothing_can_be_shown(digits_engine, tmp_path):
    options = ("-n", "1", "-o", "grid.png")
    for env, told in (({"TERM": "dumb"}, True), ({"TERM": "xterm-256color"}, False)):
        more = () if told else ("--quiet",)
        arguments = ["-m", "m2kit", *more, "generate", "--engine", digits_engine, *options]
        terminal = PtyTerminal([*arguments, "--preview"], "kitty", cwd=tmp_path, env=env)
        status, shown = terminal.ended()
        assert status == 0 and QUESTION not in shown and (b"no preview" in shown) == told
        assert not any(re.search(text, shown) for text in SHOWN.values())


def test_ctrl_c_and_another_size_leave_a_terminal_whole(digits_engine, tmp_path):
    options = ("-n", "100000", "--batch", "4", "-o", "many")
    terminal = generating(
        digits_engine, "plain", *options, cwd=tmp_path, env={"COLORTERM": "truecolor"}
    )
    terminal.until(rb"(\r\n){10}\r\x1b7\x1b8\x1b7\x1b\[10A")
    terminal.until(rb"\x1b\[2K\r\x1b7\x1b8\x1b7\x1b\[10A")  # again, in place
    terminal.resize(50, 12)
    terminal.until(rb"\x1b\[10A\r\x1b\[J(\r\n){8}\r\x1b7\x1b8\x1b7\x1b\[8A")
    terminal.type(b"\x03")
    status, shown = terminal.ended()
    assert status == 130 and b"interrupted: " in shown and b"Traceback" not in shown
    assert b"\x1b\\\x1b[0m\x1b8\x1b7\x1b[2K" in shown  # wherever the cursor was
    assert left_as_it_was(terminal)


def test_no_file_is_a_terminal(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert terminal_at(Console(file=file, force_terminal=True)) is None
    assert terminal_at(Console(file=io.StringIO(), force_terminal=True)) is None


def test_a_terminal_without_a_name_is_one_of_few_colours():
    terminal = PtyTerminal(["-c", ASK, 0], "plain", env={"TERM": None})
    status, shown = terminal.ended()
    assert status == 0 and shown.endswith(b"found None\r\n")
