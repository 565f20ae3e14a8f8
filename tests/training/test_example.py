"""The shipped digits example, and the commands that made it."""

import json

import numpy as np
import pytest
import torch
from conftest import DIGITS_CHECKPOINT

from m2kit.cli import cli
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.crops import images_of
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.losses.tokens import token_nats
from m2kit.training.torch_backend import TorchBackend


def test_the_shipped_example_says_how_it_was_made():
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    training = checkpoint.training
    assert json.loads(json.dumps(training))["seed"] == 0
    assert training["training_bits_per_token"] < training["held_out_bits_per_token"] < 3
    assert DIGITS_CHECKPOINT.stat().st_size < 10_000_000
    model = model_from_checkpoint(checkpoint)
    images, labels = images_of(DIGITS.load().held_out, 32)
    engine = Engine(model.spec, TorchBackend(model))
    tokens = torch.from_numpy(engine.encode(images.numpy())).flatten(1, 2)
    with torch.no_grad():
        nats = token_nats(model.transformer(labels, tokens), tokens)
    bits = nats.item() / np.log(2)
    assert bits == pytest.approx(training["held_out_bits_per_token"], abs=0.01)


def test_the_shipped_example_was_trained_with_the_commands_defaults():
    training = read_checkpoint(DIGITS_CHECKPOINT).training
    for parameter in cli.commands["train"].commands["ar"].params:
        if parameter.name in set(training) - {"guidance", "data"}:
            default = parameter.default
            if parameter.name == "bits":
                default = [int(part) for part in default.split(",")]
            assert training[parameter.name] == default, parameter.name
    assert training["guidance"] == [2.0, 2.0]
