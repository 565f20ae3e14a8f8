"""Forged, damaged and foreign resume.ckpt and best.ckpt: one line each, never a traceback."""

import os
import re
import shutil
import signal
import zipfile

import pytest
import torch
from doubles.tiny_recipe import TwoPhases, fit

from m2kit.errors import InputError, TrainingInterrupted
from m2kit.training.recipes import loop
from m2kit.training.recipes.metrics import read_metrics

GONE = object()
FIRST = ("recipe", "first")
STATISTICS = ("recipe", "statistics")
WEIGHT = (*FIRST, "network", "0.weight")
GROUP = (*FIRST, "optimizer", "param_groups", 0)
ADAM = (*FIRST, "optimizer", "state", "0.weight")
BIAS = ("weights", "second", "average", "bias")
OF_WEIGHT = r"0\.weight: expected a tensor \[3, 2\] of float32, found "


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after six of twelve steps."""
    folder, asked = tmp_path_factory.mktemp("begun"), [5]

    def at(step, _):
        if step in asked:
            asked.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    with pytest.raises(TrainingInterrupted):
        fit(folder, TwoPhases(at))
    return folder


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def replaced(value, path, new):
    """A copy of nested containers in which the item at a path is another, or gone."""
    name, *rest = path
    copied = dict(value) if isinstance(value, dict) else list(value)
    if new is GONE and not rest:
        del copied[name]
    else:
        copied[name] = replaced(value[name], rest, new) if rest else new
    return copied


def refused(run, name, recipe=None, **changes):
    """The one line that a resume of the run ends with, which changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    with pytest.raises(InputError) as caught:
        fit(run, recipe, **changes)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    assert message.startswith(str(run / name))
    assert message.endswith("start again in another folder")
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    return message.removeprefix(str(run / name))


def forge(run, name, path, new):
    content = torch.load(run / name, weights_only=True)
    torch.save(replaced(content, path, new), run / name)


def test_a_run_as_it_is_goes_on(run, monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *_: None)
    fit(run)
    rows = read_metrics(run / "metrics.csv", TwoPhases.panels)
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 12]


def test_tensors_that_share_their_numbers_are_taken_apart(run, monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *_: None)
    shared = torch.zeros(1)
    for path, shape in (((*ADAM, "exp_avg"), (3, 2)), (WEIGHT, (3, 2)), (("sums",), (5,))):
        kind = torch.float64 if path == ("sums",) else torch.float32
        forge(run, "resume.ckpt", path, shared.to(kind).expand(shape))
    fit(run)


def test_one_process_goes_on_with_the_mean_of_what_several_kept(run):
    kept = [{"mean": torch.tensor(value)} for value in (1.0, 2.0, 6.0)]
    forge(run, "resume.ckpt", STATISTICS, kept)
    forge(run, "resume.ckpt", ("step",), 12)  # there is no more to do
    recipe = TwoPhases()
    fit(run, recipe)
    assert recipe.statistics.mean.item() == 3.0


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        (("step",), GONE, "step is missing"),
        (("step",), "1", "step: expected a count, found str '1'"),
        (("step",), True, "step: expected a count, found bool True"),
        (("step",), -1, "step: expected a count, found int -1"),
        (("step",), 2**70, "step: expected a count"),
        (("step",), 13, "step: expected 12 at most, found 13"),
        (("odd",), 1, "odd is not known"),
        (("o\nd\x1b[2J",), 1, r"'o\\nd\\x1b\[2J' is not known"),
        (("x" * 9999,), 1, r"xxx\.\.\. is not known"),
        (("recipe",), [], "recipe: expected a dict, found list"),
        (FIRST, GONE, "recipe.first is missing"),
        (STATISTICS, {}, r"statistics: expected a list of 1, found dict"),
        (STATISTICS, [], r"statistics: expected a list of 1, found list \[\]"),
        (STATISTICS, [{"mean": torch.zeros(())}, {}], r"statistics\[1\]\.mean is missing"),
        ((*STATISTICS, 0, "mean"), torch.zeros(1), r"expected a tensor \[\] of float32"),
        (WEIGHT, GONE, r"recipe\.first\.network\.0\.weight is missing"),
        ((*FIRST, "average", "odd"), torch.zeros(1), "recipe.first.average.odd is not known"),
        (WEIGHT, torch.zeros(2, 3), OF_WEIGHT + r"a tensor \[2, 3\]"),
        (WEIGHT, torch.zeros(3, 2).half(), OF_WEIGHT + r"a tensor \[3, 2\] of float16"),
        (WEIGHT, 1.0, OF_WEIGHT + "float 1.0"),
        ((*FIRST, "optimizer"), None, "optimizer: expected a dict, found NoneType"),
        ((*GROUP[:-1],), [], "param_groups: expected a list of 1, found list"),
        ((*GROUP, "amsgrad"), True, "param_groups.amsgrad: expected bool False, found bool True"),
        ((*GROUP, "betas"), (0.5, 0.9), r"betas: expected tuple \(0.9, 0.999\), found tuple \(0.5"),
        ((*GROUP, "betas"), [0.9, 0.999], "betas: expected a tuple of 2, found list"),
        ((*GROUP, "fused"), True, "fused: expected None, found bool True"),
        ((*GROUP, "lr"), float("nan"), "lr: expected a finite number, found float nan"),
        ((*GROUP, "params"), ["0.weight"], "params: expected a list of 4"),
        ((*GROUP, "params", 0), "1.weight", "params: expected list .*, found list"),
        (ADAM, GONE, r"state\.0\.weight is missing"),
        ((*ADAM, "exp_avg"), GONE, r"state\.0\.weight\.exp_avg is missing"),
        ((*ADAM, "exp_avg"), torch.zeros(5), r"exp_avg: expected a tensor \[3, 2\]"),
        ((*ADAM, "step"), "many", r"step: expected a tensor \[\]"),
        ((*ADAM, "step"), torch.tensor(-1.0), "step: expected a count, found float -1.0"),
        ((*ADAM, "step"), torch.tensor(0.5), "step: expected a count, found float 0.5"),
        ((*ADAM, "step"), torch.tensor(float("nan")), "step: expected a count, found float nan"),
        (("best", "step"), 7.0, "best.step: expected a count, found float 7.0"),
        (("best", "value"), float("-inf"), "best.value: expected a finite number"),
        (("best", "value"), None, "best.value: expected a finite number, found NoneType"),
        (("sums",), torch.zeros(3), r"sums: expected a tensor \[5\] of float64"),
        (("summed", 0), -1, r"summed\[0\]: expected a count"),
        (("summed",), [0], "summed: expected a list of 5"),
        (("scaler", "scale"), 0.0, "scaler.scale: expected more than 0, found float 0.0"),
        (("scaler", "_growth_tracker"), -1, "scaler._growth_tracker: expected a count"),
        (("scaler", "backoff_factor"), 2.0, "scaler.backoff_factor: expected float 0.5"),
        (("unread",), ["a.png"], "unread: expected text"),
        (("unread",), GONE, "unread is missing"),
    ],
)  # fmt: skip
def test_a_forged_resume_file_is_one_line_that_names_the_field(run, path, new, complaint):
    forge(run, "resume.ckpt", path, new)
    message = refused(run, "resume.ckpt")
    assert message.startswith(" is not of this run (")
    assert re.search(complaint, message), message


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        (("best",), GONE, "best is missing"),
        (("best", "step"), 1.5, "best.step: expected a count, found float 1.5"),
        (("best", "step"), True, "best.step: expected a count, found bool True"),
        (("weights",), GONE, "weights is missing"),
        (("weights", "third"), {}, "weights.third is not known"),
        (BIAS, GONE, "weights.second.average.bias is missing"),
        (BIAS, torch.zeros(2), r"expected a tensor \[1\] of float32, found a tensor \[2\]"),
        (BIAS, torch.zeros(1).double(), r"expected a tensor \[1\] of float32.* of float64"),
        (BIAS, [0.0], r"expected a tensor \[1\].*found list"),
    ],
)
def test_a_forged_best_file_is_noticed_before_training_goes_on(run, path, new, complaint):
    forge(run, "best.ckpt", path, new)
    message = refused(run, "best.ckpt")
    assert message.startswith(" is not of this run (")
    assert re.search(complaint, message), message


@pytest.mark.parametrize("name", ["resume.ckpt", "best.ckpt"])
def test_what_is_no_checkpoint_of_a_run_is_one_line(run, name):
    path = run / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "is not a whole PyTorch checkpoint" in refused(run, name)
    place = whole.index(b"PK\x03\x04", 3000) - 20  # in the bytes of a tensor, or their padding
    path.write_bytes(whole[:place] + bytes(40) + whole[place + 40 :])
    refused(run, name)
    path.write_bytes(b"half")
    assert "is not a PyTorch checkpoint" in refused(run, name)
    path.write_bytes(b"")
    refused(run, name)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "a zip, but of something else")
    assert "is not a PyTorch checkpoint" in refused(run, name)
    torch.save([1, 2, 3], path)
    assert "expected a dict, found a list" in refused(run, name)
    torch.save({"net.weight": torch.zeros(1, 2)}, path)  # weights, without a run
    assert "is missing" in refused(run, name)
    torch.save({"step": zipfile.ZipFile}, path)
    assert "asks to load zipfile.ZipFile" in refused(run, name)
    for odd in (torch.zeros(3, 2).to_sparse(), torch.zeros(3, 2, device="meta")):
        torch.save({"step": odd}, path)
        assert "asks to load torch._utils._rebuild" in refused(run, name)
    path.unlink()
    path.mkdir()
    assert "is missing" in refused(run, name)


def test_each_file_is_not_the_other(run):
    resume, best = run / "resume.ckpt", run / "best.ckpt"
    kept = resume.read_bytes()
    shutil.copy(best, resume)
    assert "step is missing" in refused(run, "resume.ckpt")
    best.write_bytes(kept)
    resume.write_bytes(kept)
    assert "weights is missing" in refused(run, "best.ckpt")


def test_the_files_of_another_recipe_are_refused(run):
    message = refused(run, "resume.ckpt", TwoPhases(width=4))
    assert "0.weight: expected a tensor [4, 2] of float32" in message
    message = refused(run, "resume.ckpt", TwoPhases(optimizer=torch.optim.Adamax))
    assert "optimizer.state.0.weight.exp_inf is missing" in message
    message = refused(run, "resume.ckpt", TwoPhases(optimizer=torch.optim.AdamW))
    assert "weight_decay: expected a finite number, found int 0" in message
    assert "step: expected 3 at most, found 6" in refused(run, "resume.ckpt", epochs=1)


def test_lists_in_lists_without_end_are_one_line(run):
    deep = b"]" * 100_000 + b"a" * 99_999  # pickle's words for an empty list and for append
    pickled = b"\x80\x02}X\x04\0\0\0best" + deep + b"s" + b"X\x07\0\0\0weights}s."
    writer = torch._C.PyTorchFileWriter(str(run / "best.ckpt"))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    message = refused(run, "best.ckpt")
    assert "(best: expected a dict, found list of too many levels)" in message


def test_a_missing_best_file_is_noticed_before_training_goes_on(run):
    (run / "best.ckpt").unlink()
    assert refused(run, "best.ckpt").startswith(" is missing;")
