import errno
import os
import struct

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from m2kit.errors import FolderError, InputError
from m2kit.training.recipes.metrics import MetricsLog, curve, plot_curves, read_metrics

PANELS = {"entropy": ["bits"], "held out": ["held_out"]}
HEADER = "step,epoch,bits,held_out\n"
WHOLE = HEADER + "50,0.5,7.5,\n100,1,3.25,0.125\n"
ROWS = [
    {"step": 50, "epoch": 0.5, "bits": 7.5},
    {"step": 100, "epoch": 1.0, "bits": 3.25, "held_out": 0.125},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_rows_are_read_as_numbers_and_what_was_not_measured_is_left_out(path):
    path.write_text(WHOLE)
    rows = read_metrics(path, PANELS)
    assert rows == ROWS
    assert isinstance(rows[0]["step"], int)
    assert curve(rows, "bits") == ([0.5, 1.0], [7.5, 3.25])
    assert curve(rows, "held_out") == ([1.0], [0.125])


def test_columns_may_be_in_any_order(path):
    path.write_text("held_out,bits,step,epoch\n,7.5,50,0.5\n0.125,3.25,100,1\n")
    assert read_metrics(path, PANELS) == ROWS


@pytest.mark.parametrize("broken", ["1", "150,1.5", "150,1.5,2,0.0", '150,"1', "\0"])
def test_a_last_line_that_breaks_off_is_left_out(path, broken):
    path.write_text(WHOLE + broken)
    assert read_metrics(path, PANELS) == ROWS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected the columns bits, epoch, held_out, step, found none"),
        (HEADER.strip(), "found none"),
        ("step,epoch\n1,1\n", "found step, epoch"),
        ("step,epoch,bits,held_out,odd\n1,1,1,1,2\n", "found step, epoch, bits, held_out, odd"),
        ("step,epoch,bits,bits\n0,1,2,2\n", "found step, epoch, bits, bits"),
        (WHOLE + "150\n", "line 4: expected 4 values, found 1"),
        (WHOLE + "\n", "line 4: expected 4 values, found 0"),
        (WHOLE + "150,2,1,1,1\n", "line 4: expected 4 values, found 5"),
        (WHOLE + ",2,1,1\n", "line 4: expected a whole number of steps, and epochs"),
        (WHOLE + "150,,1,1\n", "line 4: expected a whole number of steps, and epochs"),
        (WHOLE + "150.5,2,1,1\n", "line 4: expected a whole number of steps, and epochs"),
        (WHOLE + "two,2,1,1\n", "line 4, step: expected a number, found 'two'"),
        (WHOLE + "150,2,1e,1\n", "line 4, bits: expected a number, found '1e'"),
        (WHOLE + "150,2, ,1\n", "line 4, bits: expected a number, found ' '"),
        (WHOLE + "150,2,1,nan\n", "line 4, held_out: expected a finite number, found 'nan'"),
        (WHOLE + "inf,2,1,1\n", "line 4, step: expected a finite number, found 'inf'"),
        (WHOLE + "1e999,2,1,1\n", "line 4, step: expected a finite number, found '1e999'"),
        (WHOLE + "100,2,1,1\n", "expected growing numbers in the column step"),
        (WHOLE + "60,2,1,1\n", "expected growing numbers in the column step"),
        (HEADER + "0,0,1,1\n", "expected growing numbers in the column step"),
        (HEADER + "-1,1,1,1\n", "expected growing numbers in the column step"),
        (WHOLE + '150,2,1,"1\n', "unexpected end of data"),
        (WHOLE + "150,2,\0,\n", "found '\\x00'"),
        (WHOLE.replace("7.5", "7" * 200_000), "field larger than field limit"),
        (WHOLE.replace("7.5", "x" * 2000), "line 2, bits: expected a number"),
        (b"\xff\xfe" + WHOLE.encode(), "invalid start byte"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_place(path, text, complaint):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_metrics(path, PANELS)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert complaint in message
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("start again in another folder")


def test_a_folder_of_that_name_is_damage_too(tmp_path):
    with pytest.raises(InputError, match="is damaged"):
        read_metrics(tmp_path, PANELS)


def log_of(path, done):
    log = MetricsLog(path, PANELS, done)
    log.close()
    return log


def test_a_log_goes_on_after_the_steps_that_are_done_and_drops_those_beyond(path):
    log = MetricsLog(path, PANELS, 0)
    log.add(50, 0.5, {"bits": 7.5})
    log.add(100, 1.0, {"bits": 3.25, "held_out": 0.125})
    log.add(150, 1.5, {"bits": 1 / 3})
    log.close()
    assert read_metrics(path, PANELS) == [*ROWS, {"step": 150, "epoch": 1.5, "bits": 1 / 3}]
    whole = path.read_bytes()
    log_of(path, 150)
    assert path.read_bytes() == whole
    log_of(path, 149)
    assert read_metrics(path, PANELS) == ROWS
    log_of(path, 0)
    assert read_metrics(path, PANELS) == []


def test_a_row_after_one_that_broke_off_is_whole(path):
    path.write_text(WHOLE + "150,1")
    log = MetricsLog(path, PANELS, 100)
    log.add(150, 1.5, {"bits": 2.0})
    log.close()
    assert read_metrics(path, PANELS) == [*ROWS, {"step": 150, "epoch": 1.5, "bits": 2.0}]


def test_a_damaged_file_is_noticed_before_a_run_goes_on_and_kept(path):
    path.write_text(WHOLE + "150,x,1,\n")
    with pytest.raises(InputError, match="line 4, epoch: expected a number, found 'x'"):
        MetricsLog(path, PANELS, 100)
    assert path.read_text() == WHOLE + "150,x,1,\n"


def test_a_log_that_cannot_be_written_is_one_line(path):
    log = log_of(path, 0)
    path.unlink()
    path.mkdir()
    with pytest.raises(FolderError, match=r"cannot write .*: Is a directory$"):
        log.add(1, 1.0, {"bits": 1.0})


@pytest.mark.parametrize("method", ["write_event", "flush"])
def test_a_full_disk_ends_what_is_written_for_tensorboard_in_one_line(path, monkeypatch, method):
    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = MetricsLog(path, PANELS, 0)
    with monkeypatch.context() as patch:
        patch.setattr(EventsWriter, method, fails)
        with pytest.raises(FolderError) as caught:
            log.add(1, 1.0, {"bits": 1.0})
    log.close()
    assert str(caught.value) == (
        f"cannot write {path.parent / 'tensorboard'}: No space left on device"
    )


def test_tensorboard_finds_measures_and_images(path):
    log = MetricsLog(path, PANELS, 7)
    log.add(8, 0.5, {"bits": 2.5, "held_out": 1.0})
    log.add_images("samples", np.zeros((2, 4, 4, 3), np.uint8), 8)
    log.close()
    (file,) = (path.parent / "tensorboard").iterdir()
    whole, events = file.read_bytes(), []
    while whole:
        (size,) = struct.unpack("<Q", whole[:8])
        events.append(Event.FromString(whole[12 : 12 + size]))
        whole = whole[16 + size :]
    assert [event.step for event in events] == [0, 8, 8, 8, 8]
    assert events[1].session_log.status == SessionLog.START
    values = [(v.tag, v.simple_value) for e in events[2:4] for v in e.summary.value]
    assert values == [("bits", 2.5), ("held_out", 1.0)]
    (image,) = events[4].summary.value
    assert (image.tag, image.image.height, image.image.width) == ("samples", 4, 8)


def test_the_curves_of_a_run_are_a_picture(path):
    path.write_text(WHOLE)
    plot_curves(path, path.with_name("curves.png"), PANELS)
    assert path.with_name("curves.png").read_bytes().startswith(b"\x89PNG")
