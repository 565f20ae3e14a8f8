"""Twelve steps of two phases, the second from the fourth on, each of two parts; a row every second
step, measured after steps 5, 10 and 12."""

import csv
import errno
import math
import os
import signal

import pytest
import torch
from doubles.tiny_recipe import Numbers, TwoPhases, fit

from m2kit.errors import FolderError, M2KitError, TrainingInterrupted
from m2kit.training.recipes import loop
from m2kit.training.recipes.loop import Run
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.schedule import learning_rate
from m2kit.training.recipes.settings import RunSettings

NAN = float("nan")


pytestmark = pytest.mark.usefixtures("uncurved")


def content(path):
    return torch.load(path, weights_only=True)


def files(folder):
    """The bytes of a run's files, but for those that TensorBoard reads."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def leaves(value, path=()):
    """Tensors and numbers of nested containers, as text that is the same for the same bits."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for name, item in items for leaf in leaves(item, (*path, name))]
    shown = value.double().flatten().tolist() if isinstance(value, torch.Tensor) else value
    return [(path, repr(shown))]


def signalled(step, number=signal.SIGTERM, phase="first"):
    """Sends this process a signal in a step, counted from 0, as the system would."""
    places = [(step, phase)]

    def at(*place):
        if place in places:
            places.remove(place)  # a step has two parts
            os.kill(os.getpid(), number)
        return 0.0

    return TwoPhases(at)


class Killed(Exception):
    pass


def killed(step, phase):
    """Ends in the middle of a step, of which nothing is saved."""

    def at(now, name):
        if (now, name) == (step, phase):
            raise Killed
        return 0.0

    return TwoPhases(at)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_curves", lambda *_: None)
        fit(folder)
    return folder


@pytest.mark.parametrize(
    "stops",
    [
        [signalled(0), signalled(1), signalled(2)],
        [signalled(2), signalled(3), signalled(4)],
        [signalled(3, phase="second"), killed(6, "second"), signalled(8)],
        [killed(1, "first"), killed(4, "second"), signalled(10)],
        [signalled(5), killed(6, "first"), killed(9, "first")],
    ],
    ids=["early", "as the second begins", "within it", "before any save", "between saves"],
)
def test_a_run_that_was_stopped_thrice_ends_as_one_that_was_not(whole, tmp_path, stops):
    for stop in stops:
        with pytest.raises((TrainingInterrupted, Killed)):
            fit(tmp_path, stop)
    fit(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    for name in ("resume.ckpt", "best.ckpt"):
        assert leaves(content(tmp_path / name)) == leaves(content(whole / name)), name


def test_a_run_is_saved_as_often_as_is_asked(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, killed(4, "second"), save_every=2)
    assert content(tmp_path / "resume.ckpt")["step"] == 4


def test_metrics_are_means_over_the_steps_since_the_row_before(whole):
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "5", "6", "8", "10", "12"]
    assert [row["step"] for row in rows if row["held_out_square"]] == ["5", "10", "12"]
    assert float(rows[0]["second_gradient_norm"]) == 0 < float(rows[1]["second_gradient_norm"])
    assert float(rows[-1]["epoch"]) == 4
    assert float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_saved(tmp_path, number):
    before = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(TrainingInterrupted) as caught:
        fit(tmp_path, signalled(3, number))
    assert str(caught.value) == (
        f"interrupted after step 4 of 12; {tmp_path} holds the run: resume it to go on with it"
    )
    assert content(tmp_path / "resume.ckpt")["step"] == 4
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_sigterm_leaves_the_run_to_end_saved(tmp_path):
    def at(step, _):
        if step == 3:  # which has two parts of two phases
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # its own would end pytest
    try:
        with pytest.raises(TrainingInterrupted, match="after step 4 of 12"):
            fit(tmp_path, TwoPhases(at))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert content(tmp_path / "resume.ckpt")["step"] == 4


def test_a_second_sigint_ends_the_run_at_once(tmp_path):
    def at(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, TwoPhases(at))
    assert not (tmp_path / "resume.ckpt").exists()


def test_the_largest_seed_trains(tmp_path):
    fit(tmp_path, seed=2**32 - 1)
    assert content(tmp_path / "resume.ckpt")["step"] == 12


def test_signals_that_are_ignored_stay_so(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do
    try:
        fit(tmp_path, signalled(3, signal.SIGINT), epochs=2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def diverging(value, phase="first"):
    return TwoPhases(lambda step, name: value if (step, name) == (6, phase) else 0.0)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (diverging(NAN), "step 7: odd is nan; norms of the gradients: first"),
        (diverging(-float("inf")), "step 7: odd is -inf; norms of the gradients: first"),
        (
            diverging(NAN, "second"),
            "step 7: odd is nan; norms of the gradients: first .*, second nan",
        ),
        (TwoPhases(measured={10: NAN}), "step 10: held_out_square is nan; "),
    ],
    ids=["NaN", "infinite", "in the second phase", "in the measure"],
)
def test_a_training_that_diverges_is_one_line_and_keeps_what_was_saved(tmp_path, recipe, told):
    with pytest.raises(TrainingInterrupted):
        fit(tmp_path, signalled(5))
    before = files(tmp_path)
    assert set(before) == {"metrics.csv", "best.ckpt", "resume.ckpt"}
    with pytest.raises(M2KitError, match=f"training diverged in {told}") as caught:
        fit(tmp_path, recipe, log_every=50)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(
        f"; {tmp_path / 'resume.ckpt'} is as it was before; start again with a lower learning rate "
        "in another folder"
    )
    assert files(tmp_path) == before


def test_a_row_has_the_learning_rate_of_its_step(tmp_path):
    fit(tmp_path, steps=10)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row["learning_rate"])) for row in csv.DictReader(file)]
    settings = RunSettings(
        data="x", epochs=4, steps=10, batch=4, learning_rate=0.01, ema_decay=0.5, seed=3
    )
    assert len(rows) > 4
    for step, rate in rows:
        assert rate == pytest.approx(learning_rate(settings, step - 1, 12))


def test_gradients_that_are_no_numbers_are_told_though_the_losses_are(tmp_path):
    recipe = TwoPhases()
    recipe.first.network[0].weight.register_hook(lambda gradient: gradient * NAN)
    with pytest.raises(M2KitError, match=r"step 1: all losses are numbers; .* first nan; nothing"):
        fit(tmp_path, recipe)


def overflowing(*stops):
    """Gradients of the first network overflow in the steps 1, 2, 3 and 5, counted from 1."""
    recipe = signalled(*stops) if stops else TwoPhases()

    def hook(gradient):
        return gradient * (math.inf if recipe.step in (0, 1, 2, 4) else 1)

    recipe.first.network[0].bias.register_hook(hook)
    return recipe


def test_steps_that_overflow_in_fp16_are_left_out_and_a_resume_scales_on(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    fit(whole, overflowing(), precision="fp16")
    with (whole / "metrics.csv").open() as file:
        norms = [row["first_gradient_norm"] for row in csv.DictReader(file)]
    assert norms[0] == norms[2] == ""  # of steps that were all left out
    assert all(0 < float(norm) < math.inf for norm in [norms[1], *norms[3:]])
    saved = content(whole / "resume.ckpt")
    assert saved["scaler"]["scale"] == 2.0**16 / 2**4
    assert saved["recipe"]["first"]["optimizer"]["state"]["0.weight"]["step"] == 12 - 4
    with pytest.raises(TrainingInterrupted):
        fit(stopped, overflowing(3), precision="fp16")
    fit(stopped, overflowing(), precision="fp16")
    assert leaves(content(stopped / "resume.ckpt")) == leaves(saved)
    assert (stopped / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_samples_are_made_where_they_are_written_or_help_to_make_them(tmp_path):
    made = []
    for strategy in ("ddp", "sharded"):
        recipe = TwoPhases()
        recipe.samples = lambda _, strategy=strategy: made.append(strategy)
        machine = Machine(accelerator="cpu", strategy=strategy)
        fabric = Machine(accelerator="cpu").fabric()
        run = Run(recipe, None, machine, fabric, tmp_path, Numbers(12), Numbers(7))
        run._draw(None, 1)  # as a process that is not the first does
    assert made == ["sharded"]


@pytest.mark.parametrize(("last", "best"), [(2.0, 5), (1.0, 5), (0.5, 12)])
def test_the_model_of_the_smallest_measure_is_kept_over_a_resume(tmp_path, last, best):
    measured = {5: 1.0, 10: 3.0, 12: last}
    stopped = signalled(7)
    stopped.measured = measured
    with pytest.raises(TrainingInterrupted):
        fit(tmp_path, stopped)
    first = (tmp_path / "best.ckpt").read_bytes()
    recipe = TwoPhases(measured=measured)
    fit(tmp_path, recipe)
    kept = content(tmp_path / "best.ckpt")
    assert kept["best"] == {"step": best, "value": measured[best]}
    if best == 5:
        assert (tmp_path / "best.ckpt").read_bytes() == first
    else:
        weights = recipe.first.averaged.state_dict()
        assert leaves(kept["weights"]["first"]["average"]) == leaves(weights)


@pytest.mark.parametrize("full", ["resume.ckpt", "best.ckpt", "metrics.csv"])
def test_a_full_disk_is_one_line_and_keeps_the_last_good_files(tmp_path, monkeypatch, full):
    with pytest.raises(TrainingInterrupted):
        fit(tmp_path, signalled(5))
    before = files(tmp_path)

    def fails():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(state, file):
        return (
            fails()
            if full == ("resume.ckpt" if "recipe" in state else "best.ckpt")
            else whole_save(state, file)
        )

    def writerow(writer, row):
        return fails() if full == "metrics.csv" and row["step"] == 8 else whole_row(writer, row)

    whole_save, whole_row = torch.save, csv.DictWriter.writerow
    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(csv.DictWriter, "writerow", writerow)
    with pytest.raises(FolderError, match="No space left on device") as caught:
        fit(tmp_path, TwoPhases(measured={10: 0.0 if full == "best.ckpt" else 99.0}))
    assert str(caught.value).startswith(f"cannot write {tmp_path / full}")
    after = files(tmp_path)
    assert set(after) == set(before)
    assert after["resume.ckpt"] == before["resume.ckpt"]
    assert after["best.ckpt"] == before["best.ckpt"]


def test_pictures_that_could_not_be_read_are_counted_once_and_named(tmp_path):
    (*_, last) = fit(tmp_path, train=Numbers(12, {2: "2.png", 7: "7.png"}))
    told = "2 pictures could not be read, and the next ones stood in for them: 2.png, 7.png"
    assert last == told


def test_pictures_that_could_not_be_read_are_named_however_often_a_run_is_stopped(tmp_path):
    odd = "line\nbreak \udcff.png"
    with pytest.raises(TrainingInterrupted):
        fit(tmp_path, signalled(4), train=Numbers(12, {2: "2.png", 7: odd}))
    (*_, last) = fit(tmp_path, train=Numbers(12, {5: "5.png"}))
    told = "3 pictures could not be read, and the next ones stood in for them: "
    assert last == f"{told}2.png, 5.png, 'line\\nbreak \\udcff.png'"


def test_of_many_pictures_that_could_not_be_read_ten_are_named(tmp_path):
    (*_, last) = fit(tmp_path, train=Numbers(12, {n: f"{n}.png" for n in range(12)}))
    assert last.startswith("12 pictures could not be read")
    assert last.endswith(" and 2 more")
    assert last.count(".png") == 10
