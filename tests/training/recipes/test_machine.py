"""Where a run can compute, and where it cannot."""

import pytest
import torch

from m2kit.errors import InputError
from m2kit.training.recipes import machine as machine_module
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.machine import Machine

compiles = pytest.mark.filterwarnings("ignore")  # torch's own, which it hides or swallows


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one of torchrun's, which are so many on each of so many machines."""
    monkeypatch.setattr("m2kit.training.recipes.machine.end_with_starter", lambda: None)

    def start(nodes, here):
        values = {"LOCAL_WORLD_SIZE": here, "WORLD_SIZE": nodes * here, "RANK": 0, "LOCAL_RANK": 0}
        for name, value in {**values, "TORCHELASTIC_RUN_ID": "none"}.items():
            monkeypatch.setenv(name, str(value))

    return start


def refused(**where):
    with pytest.raises(InputError) as caught:
        Machine(accelerator="cpu", **where).fabric()
    assert "\n" not in str(caught.value)
    return f"{caught.value} ({caught.value.option})"


def test_several_machines_need_torchrun_on_each():
    assert refused(nodes=2) == (
        "2 machines were asked for, and this one knows of no other; start the run by torchrun on "
        "each of them, as docs/training.md says (--nodes)"
    )


@pytest.mark.parametrize(
    ("started", "asked", "counts"),
    [
        ((2, 4), {"nodes": 3}, "4 on 3"),
        ((2, 4), {}, "4 on 1"),
        ((1, 2), {"devices": 3}, "3 on 1"),
        ((1, 2), {"nodes": 2, "devices": 1}, "1 on 2"),
    ],
)
def test_what_torchrun_has_started_must_be_what_is_asked_for(torchrun, started, asked, counts):
    torchrun(*started)
    assert refused(**asked) == (
        f"torchrun has started {started[1]} processes on each of {started[0]} machines, and the "
        f"command asks for {counts}; ask both for the same (--nodes, --devices)"
    )


def test_torchrun_says_how_many_processes_there_are(torchrun):
    torchrun(2, 4)
    machine = Machine(accelerator="cpu", nodes=2)
    assert machine.devices_here == 4
    assert machine.fabric().world_size == 8


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="3 devices were asked for, and this machine has 2 GPUs"):
        Machine(devices=3).fabric()
    assert Machine().devices_here == 2
    assert Machine(accelerator="cpu").devices_here == 1


def test_a_gpu_that_is_not_there_is_one_line_of_our_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for devices in (0, 2):
        with pytest.raises(InputError) as caught:
            Machine(accelerator="cuda", devices=devices).fabric()
        assert str(caught.value) == (
            f"expected a GPU that PyTorch {torch.__version__} can use, found none; train on the "
            "CPU, or see what `m2kit doctor` says"
        )


@compiles
def test_compiled_networks_learn_the_same_and_keep_their_names(
    ar_settings, tokenizer_file, tmp_path, few, uncurved
):
    settings = ar_settings(data="few", steps=1, batch=8, dropout=0.0, class_dropout=0.0)
    for compiled in (False, True):
        machine = Machine(accelerator="cpu", compile=compiled)
        train_ar(settings, tokenizer_file, tmp_path / str(compiled), resume=False, machine=machine)
    weights, plain = (
        torch.load(tmp_path / name / "ar.pt", weights_only=True)["state_dict"]
        for name in ("True", "False")
    )
    assert weights.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-4)


def test_lightning_says_nothing_of_precision(caplog):
    with caplog.at_level("INFO"):
        Machine(accelerator="cpu", precision="bf16").fabric()
    assert not caplog.records


def test_no_gpu_is_touched_before_each_process_has_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine_module, "end_with_starter", lambda: None)
    monkeypatch.setattr(machine_module, "Fabric", lambda **_: "a fabric")
    monkeypatch.setattr(torch, "compile", lambda _: pytest.fail("compiles"))
    assert Machine(devices=2, compile=True).fabric() == "a fabric"


@compiles
def test_a_compiler_that_does_not_work_is_one_line():
    torch.compiler.reset()
    missing = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with torch._inductor.config.patch(missing):
        message = refused(compile=True)
    assert message.startswith("torch.compile does not work here: ")
    assert "no-such-compiler" in message
