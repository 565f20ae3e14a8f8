"""Files of video tokenizers: how they are recognised, and what they do not tell."""

import pytest
import torch
from conftest import GOLDEN

from m2kit.config import PRESETS, ModelSpec
from m2kit.errors import CheckpointError, SpecError
from m2kit.families.video import VideoTokenizerSpec
from m2kit.training.checkpoints.architecture import read_architecture
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes

VIDEO = GOLDEN / "video_tiny.ckpt"
TINY = VideoTokenizerSpec(32, (1, 2), 1, 6, True, "lsb", 17)


def test_the_spec_is_read_off_names_and_shapes():
    checkpoint = read_checkpoint(VIDEO)
    assert checkpoint.spec.tokenizer == TINY and checkpoint.spec.transformer is None
    assert checkpoint.source.assumed == {"bit_order": "lsb", "frames": 17}
    assert checkpoint.source.weights == "ema"
    given = read_checkpoint(VIDEO, overrides={"frames": 4, "bit_order": "msb"})
    assert given.spec.tokenizer == VideoTokenizerSpec(32, (1, 2), 1, 6, True, "msb", 4)
    assert given.source.assumed == {}


def test_a_file_of_a_training_run_is_read_without_its_discriminator(tmp_path):
    content = torch.load(VIDEO, weights_only=True)
    for name in ("loss.discriminator.main.0.weight", "model_ema.lossdiscriminatormain0weight"):
        content["state_dict"][name] = torch.ones(64, 3, 3, 3, 3)
    content["state_dict"]["loss.perceptual_loss.lin0.model.1.weight"] = torch.ones(1, 64, 1, 1)
    torch.save(content, tmp_path / "run.ckpt")
    run, released = read_checkpoint(tmp_path / "run.ckpt"), read_checkpoint(VIDEO)
    assert run.spec == released.spec and run.source.weights == "ema"
    expected = released.tensors()
    assert set(run.tensors()) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in run.tensors().items())


def test_the_published_architecture_tells_its_frames_and_is_no_image_tokenizer():
    spec = PRESETS["video-128"].spec
    shapes = expected_shapes(spec)
    found = read_architecture(shapes, {}, None)
    assert (found.spec, found.same_as, found.assumed) == (spec, ("video-128",), {})
    with pytest.raises(SpecError, match="family is video, expected image"):
        read_architecture(shapes, {}, None, "tokenizer-128")
    stored = PRESETS["tokenizer-128"].spec
    with pytest.raises(CheckpointError, match="family is image, its tensors say video"):
        read_architecture(shapes, {}, stored)


def test_clips_are_assumed_to_have_a_length_that_the_model_takes():
    spec = VideoTokenizerSpec(32, (2,) * 6, 1, 4, True, "lsb", 1)
    found = read_architecture(expected_shapes(ModelSpec(spec, None)), {}, None)
    assert found.spec.tokenizer.strides[0] == 32 and found.assumed["frames"] == 33


def test_a_field_of_another_family_is_refused():
    words = "frames is given, which no tokenizer of the family image has"
    with pytest.raises(SpecError, match=words):
        read_checkpoint(GOLDEN / "tokenizer_tiny.ckpt", overrides={"frames": 5})


def test_a_transformer_needs_a_tokenizer_of_pictures():
    with pytest.raises(CheckpointError, match="draws pictures, and this tokenizer is of a clip"):
        read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4}, tokenizer=VIDEO)


def test_a_missing_tensor_is_named():
    content = {"encoder.conv_in.conv_1.weight": (32, 3, 3, 3, 3)}
    with pytest.raises(CheckpointError, match="it has no tensors encoder"):
        read_architecture(content, {}, None)
    with pytest.raises(CheckpointError, match=r"conv_1.weight, of five, is missing"):
        read_architecture({"encoder.conv_in.conv_1.weight": (32, 3, 3, 3)}, {}, None)
