"""Forged, damaged and foreign resume.ckpt and best.ckpt: one line each, never a traceback."""

import re
import shutil
import zipfile

import pytest
import torch

from m2kit.errors import InputError
from m2kit.training.recipes.averaged_module import AveragedModule
from m2kit.training.recipes.batches import in_order, shuffled
from m2kit.training.recipes.loop import fit
from m2kit.training.recipes.metrics import read_metrics

GONE = object()
DATA = torch.arange(16.0).view(8, 2)
LOOP = ("loops", "fit_loop")
ADAM = ("optimizer_states", 0, "state", 0)


class Small(AveragedModule):
    """Two weights, Adam, and a measure that falls."""

    def __init__(self, width=1, kind=torch.optim.Adam):
        super().__init__(torch.nn.Linear(2, width), 0.5, seed=0)
        self.kind = kind

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def validation_step(self, *_):
        self.log("measure", torch.tensor(1.0 / (1 + self.current_epoch)))

    def optimizer(self):
        optimizer = self.kind(self.net.parameters(), 1e-3)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)


def train(folder, epochs, module=None):
    resume = folder / "resume.ckpt"
    fit(
        module or Small(), shuffled(DATA, batch=4, seed=0), in_order(DATA), epochs=epochs,
        folder=folder, resume_from=resume if resume.exists() else None,
        panels={"measure": ["measure"]}, choose_by="measure", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    train(folder, 1)
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


def refused(run, name, module=None):
    """The one line that a resume of the run ends with."""
    with pytest.raises(InputError) as caught:
        train(run, 2, module)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(str(run / name))
    assert message.endswith("start again in another folder")
    return message.removeprefix(str(run / name))


def forge(run, name, path, new):
    content = torch.load(run / name, weights_only=True)
    torch.save(replaced(content, path, new), run / name)


def test_a_run_as_it_is_goes_on(run):
    train(run, 2)
    assert [row["epoch"] for row in read_metrics(run / "metrics.csv", ["measure"])] == [0, 1]


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        (("epoch",), GONE, "epoch is missing"),
        (("epoch",), "1", "epoch: expected a count, found str '1'"),
        (("epoch",), -1, "epoch: expected a count, found int -1"),
        (("epoch",), 7, "epoch: expected 1 at most, found 7"),
        (("global_step",), 2**70, "global_step: expected a count"),
        (("pytorch-lightning_version",), GONE, "version is missing"),
        (("pytorch-lightning_version",), 3, "expected text, found int 3"),
        (("state_dict",), [], "state_dict: expected a dict, found list"),
        (("state_dict", "net.weight"), GONE, "state_dict.net.weight is missing"),
        (("state_dict", "net.odd"), torch.zeros(1), "state_dict.net.odd is not known"),
        (("state_dict", "net.weight"), torch.zeros(3, 2), r"of float32, found a tensor \[3, 2\]"),
        (("state_dict", "net.weight"), torch.zeros(1, 2).half(), "found .* of float16"),
        (("state_dict", "net.weight"), 1.0, r"expected a tensor \[1, 2\] of float32, found float"),
        (("loops",), None, "loops: expected a dict, found NoneType"),
        ((*LOOP,), GONE, "loops.fit_loop is missing"),
        ((*LOOP, "epoch_progress", "current", "completed"), 1, r"epoch_progress\.current"),
        ((*LOOP, "epoch_progress", "current", "ready"), {}, "expected a count, found dict"),
        ((*LOOP, "epoch_progress", "current", "ready"), 7, "expected .*'ready': 1.* found"),
        ((*LOOP, "epoch_loop.batch_progress", "is_last_batch"), 1, "expected true or false"),
        (("callbacks",), {}, r"callbacks\.ModelCheckpoint.* is missing"),
        (("lr_schedulers",), [], "lr_schedulers: expected a list of 1"),
        (("lr_schedulers", 0, "last_epoch"), None, r"lr_schedulers\[0\]\.last_epoch: expected"),
        (("lr_schedulers", 0, "optimizer"), 5, r"lr_schedulers\[0\]\.optimizer is not known"),
        (("lr_schedulers", 0, "_last_lr"), [float("nan")], "expected a finite number"),
        (("optimizer_states",), [], "optimizer_states: expected a list of 1"),
        (("optimizer_states", 0, "param_groups"), [], "param_groups: expected a list of 1"),
        (("optimizer_states", 0, "param_groups", 0, "amsgrad"), True, "amsgrad: expected bool"),
        (("optimizer_states", 0, "state"), None, "state: expected a dict"),
        (("optimizer_states", 0, "state", 9), {}, "expected 2 parameters, found 9"),
        ((*ADAM, "exp_avg"), GONE, r"state\.0\.exp_avg is missing"),
        ((*ADAM, "exp_avg"), torch.zeros(5), r"expected a tensor \[1, 2\] of float32, found"),
        ((*ADAM, "step"), "many", "step: expected a tensor"),
    ],
)  # fmt: skip
def test_a_forged_resume_file_is_one_line_that_names_the_field(run, path, new, complaint):
    forge(run, "resume.ckpt", path, new)
    message = refused(run, "resume.ckpt")
    assert message.startswith(" is not of this run (")
    assert re.search(complaint, message), message


@pytest.mark.parametrize("field", ["best_k_models", "kth_best_model_path", "kth_value", "dirpath"])
@pytest.mark.parametrize("new", [GONE, None, "x", 3, {"a": "b"}], ids=str)
def test_what_chose_the_best_model_is_checked_too(run, field, new):
    content = torch.load(run / "resume.ckpt", weights_only=True)
    (name,) = (name for name in content["callbacks"] if "'monitor': 'measure'" in name)
    forge(run, "resume.ckpt", ("callbacks", name, field), new)
    if (field, new) == ("dirpath", "x"):
        train(run, 2)  # a folder that was moved
    else:
        assert f"callbacks.{field}" in refused(run, "resume.ckpt")


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        (("epoch",), GONE, "epoch is missing"),
        (("epoch",), 1.5, "epoch: expected a count, found float 1.5"),
        (("epoch",), True, "epoch: expected a count, found bool True"),
        (("state_dict",), GONE, "state_dict is missing"),
        (("state_dict", "ema.module.bias"), GONE, "state_dict.ema.module.bias is missing"),
        (("state_dict", "ema.module.bias"), torch.zeros(2), r"expected a tensor \[1\]"),
        (("state_dict", "ema.module.bias"), [0.0], r"expected a tensor \[1\].*found list"),
    ],
)
def test_a_forged_best_file_is_noticed_before_training_goes_on(run, path, new, complaint):
    forge(run, "best.ckpt", path, new)
    assert re.search(complaint, refused(run, "best.ckpt"))


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
    assert "epoch is missing" in refused(run, name)
    torch.save({"epoch": zipfile.ZipFile}, path)
    assert "asks to load zipfile.ZipFile" in refused(run, name)
    path.unlink()
    path.mkdir()
    assert "is missing" in refused(run, name)


def test_the_files_of_another_module_are_refused(run):
    message = refused(run, "best.ckpt", Small(width=3))
    assert "state_dict.net.weight: expected a tensor [3, 2] of float32" in message
    message = refused(run, "resume.ckpt", Small(kind=torch.optim.SGD))
    assert "optimizer_states.param_groups" in message
    torch.save({"epoch": 0, "state_dict": Small().state_dict()}, run / "resume.ckpt")
    assert "global_step is missing" in refused(run, "resume.ckpt")


def test_a_missing_best_file_is_noticed_before_training_goes_on(run):
    (run / "best.ckpt").unlink()
    assert refused(run, "best.ckpt").startswith(" is missing;")
