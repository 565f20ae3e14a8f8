"""What m2kit's own trainers add to a file, damaged and hostile."""

import pytest
import torch
from conftest import DIGITS_CHECKPOINT

from m2kit.errors import CheckpointError, M2KitError, SpecError
from m2kit.training.checkpoints.reading import read_checkpoint


@pytest.mark.parametrize(
    "notes",
    [
        3,
        [1],
        {"spec": {"tokenizer": 1}},
        {"spec": 4},
        {"sampling": [1]},
        {"sampling": {"guidance": "x"}},
        {"sampling": {"guidance": [1.0, 2.0, 3.0]}},
        {"training": {"x": torch.ones(1)}},
    ],
    ids=str,
)
def test_damaged_notes_of_a_trainer_are_one_error(tmp_path, notes):
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    if notes != 3:
        notes = {"spec": content["m2kit"]["spec"]} | notes if isinstance(notes, dict) else notes
    torch.save(content | {"m2kit": notes}, tmp_path / "a.pt")
    with pytest.raises(M2KitError, match=r"a\.pt: "):
        read_checkpoint(tmp_path / "a.pt")


def test_a_grid_that_no_memory_holds_is_one_error(tmp_path):
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    content["m2kit"]["spec"]["transformer"]["grid"] = [2**20, 2**20]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        SpecError, match=r"grid\[0\]: expected a whole number in 1\.\.65536, found 1048576"
    ):
        read_checkpoint(tmp_path / "a.pt")


def test_notes_without_end_are_one_error(tmp_path):
    """Forty lists, each of two times the one before: a few hundred bytes, endless if copied."""
    notes = ["x"]
    for _ in range(40):
        notes = [notes, notes]
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    torch.save(content | {"m2kit": {"training": {"x": notes}}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not plain data"):
        read_checkpoint(tmp_path / "a.pt")


def test_notes_of_another_model_are_refused(tmp_path):
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    content["m2kit"]["spec"]["transformer"] |= {"width": 256, "heads": 8}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="width is 256, its tensors say 128"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("note", ["a\ud800b", "two\nlines", "x" * 300_000])
def test_notes_that_no_table_can_show_are_refused(tmp_path, note):
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    content["m2kit"]["training"]["note"] = note
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not plain data"):
        read_checkpoint(tmp_path / "a.pt")
