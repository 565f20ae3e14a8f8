"""A tokenizer family is one registration: these two have ternary digits for codes, so that no
sub-vocabulary is a power of two, and one of them has a third axis. They are read, exported, built,
opened, drawn with and shown without another line changed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import m2kit
from m2kit import contract
from m2kit.cli import cli
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.engines.building import build_engine
from m2kit.errors import InputError, SpecError
from m2kit.export.exporter import export_bundle
from m2kit.export.writer import GraphWriter
from m2kit.families.family import FAMILIES, Family
from m2kit.token_file import read_tokens_of, token_file_from_ids, write_tokens
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import read_checkpoint


@dataclass(frozen=True)
class Ternary:
    """Codes of `digits` ternary digits, pictures of two axes."""

    family: ClassVar[str] = "ternary"
    axes: ClassVar[tuple[str, ...]] = ("H", "W")
    picture: ClassVar[str] = "an image"
    quantizer: ClassVar[str] = "digits"
    untold: ClassVar[tuple[str, ...]] = ()
    bit_order: ClassVar[str] = ""
    strides: ClassVar[tuple[int, ...]] = (2, 4)
    first_strides: ClassVar[tuple[int, ...]] = (2, 4)

    digits: int

    @property
    def code_channels(self):
        return self.digits

    @property
    def vocabularies(self):
        return (3**self.digits,)

    def check_split(self, vocabularies):
        if math.prod(vocabularies) != 3**self.digits:
            raise SpecError(f"{vocabularies} do not make up {self.digits} ternary digits")

    def check_grid(self, grid):
        if math.prod(grid) > 1000:
            raise InputError(f"a grid of {grid} is too large for a toy")

    def codes_from_tokens(self, tokens, vocabularies):
        flat = (tokens * np.cumprod((1, *vocabularies[:-1]))).sum(-1)
        digits = [flat // 3**i % 3 - 1 for i in range(self.digits)]
        return np.stack(digits, axis=1).astype(np.float32)

    def tokens_from_codes(self, codes, vocabularies):
        digits = np.moveaxis(np.rint(np.clip(codes, -1, 1)).astype(np.int64) + 1, 1, -1)
        flat = (digits * 3 ** np.arange(self.digits)).sum(-1)
        starts = np.cumprod((1, *vocabularies[:-1]))
        return np.stack([flat // s % v for s, v in zip(starts, vocabularies, strict=True)], -1)

    def parameter_counts(self):
        size = 3 * self.digits * math.prod(self.strides)
        return {"encoder": size, "decoder": size}

    def convolutions(self, size):
        return {"encoder": (), "decoder": ()}

    def architecture(self):
        return {"family": self.family, "digits": self.digits}


@dataclass(frozen=True)
class TernaryVideo(Ternary):
    """The same with a third axis."""

    family: ClassVar[str] = "ternary-video"
    axes: ClassVar[tuple[str, ...]] = ("T", "H", "W")
    strides: ClassVar[tuple[int, ...]] = (2, 2, 4)
    first_strides: ClassVar[tuple[int, ...]] = (2, 2, 4)


class Module(nn.Module):
    """One strided convolution each way, as a matrix over blocks of pixels."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        size = 3 * math.prod(spec.strides)
        self.encoder = Blocks(spec, (size, spec.digits))
        self.decoder = Pixels(spec, (spec.digits, size))

    def quantize(self, latent):
        return latent.clamp(-1, 1).round()

    def tokens(self, codes, vocabularies):
        return torch.from_numpy(self.spec.tokens_from_codes(codes.numpy(), vocabularies))


class Matrix(nn.Module):
    def __init__(self, spec, shape):
        super().__init__()
        self.spec, self.weight = spec, nn.Parameter(torch.zeros(shape))


def orders(axes):
    """Axes of (B, 3, n1, s1, n2, s2, ...) that bring grid axes first, and back."""
    grid, inside = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    there = [0, *grid, 1, *inside]
    return there, [there.index(i) for i in range(len(there))]


class Blocks(Matrix):
    def forward(self, image):
        strides, axes = self.spec.strides, len(self.spec.axes)
        grid = [n // s for n, s in zip(image.shape[2:], strides, strict=True)]
        split = [item for pair in zip(grid, strides, strict=True) for item in pair]
        blocks = image.reshape(len(image), 3, *split).permute(orders(axes)[0])
        return (blocks.flatten(1 + axes) @ self.weight).movedim(-1, 1)


class Pixels(Matrix):
    def forward(self, codes):
        strides, axes = self.spec.strides, len(self.spec.axes)
        blocks = (codes.movedim(1, -1) @ self.weight).unflatten(-1, (3, *strides))
        image = blocks.permute(orders(axes)[1])
        return image.reshape(
            len(codes), 3, *(n * s for n, s in zip(codes.shape[2:], strides, strict=True))
        )


class Layout:
    """How a checkpoint tells the spec."""

    def __init__(self, spec):
        self._spec = spec

    def recognises(self, shapes):
        rows = shapes.get("encoder.weight", (0,))[0]
        return rows == 3 * math.prod(self._spec.strides) and "decoder.weight" in shapes

    def fields(self, shapes):
        return {"digits": shapes["encoder.weight"][1]}

    def assumed(self, fields):
        return {}


def graph(name):
    """The function that writes a graph; static sizes stay symbolic through Reshape's 0 and -1."""

    def write(spec, weights):
        tokenizer = spec.tokenizer
        g = GraphWriter(name, contract.graph_io(spec, name), weights)
        axes, strides, digits = len(tokenizer.axes), tokenizer.strides, tokenizer.digits
        size = 3 * math.prod(strides)
        if name == contract.ENCODER:
            image = g.inputs[contract.IMAGE]
            shape = split_shape(g, image, strides, divide=True)
            blocks = g.op("Transpose", g.op("Reshape", image, shape), perm=orders(axes)[0])
            grid = grid_of(g, blocks, axes)
            flat = g.op("Reshape", blocks, g.op("Concat", grid, g.ints([size]), axis=0))
            latent = g.op("MatMul", flat, g.weight("encoder.weight", (size, digits)))
            perm = [0, axes + 1, *range(1, axes + 1)]
            g.output(contract.LATENT, g.op("Transpose", latent, perm=perm))
        elif name == contract.DECODER:
            codes = g.inputs[contract.CODES]
            last = g.op("Transpose", codes, perm=[0, *range(2, axes + 2), 1])
            pixels = g.op("MatMul", last, g.weight("decoder.weight", (digits, size)))
            shape = g.op("Concat", grid_of(g, pixels, axes), g.ints([3, *strides]), axis=0)
            blocks = g.op("Transpose", g.op("Reshape", pixels, shape), perm=orders(axes)[1])
            joined = split_shape(g, codes, strides, divide=False)
            g.output(contract.IMAGE, g.op("Reshape", blocks, joined))
        else:
            with g.float_island():
                latent = g.inputs[contract.LATENT]
                clipped = g.op("Clip", latent, g.constant(-1.0), g.constant(1.0))
                codes = g.op("Round", clipped)
                values = g.op("Add", g.op("Cast", codes, to=ir.DataType.INT64), g.ints([1]))
                powers = np.reshape(3 ** np.arange(digits), (-1, *[1] * axes))
                valued = g.op("Mul", values, g.constant(powers, np.int64))
                flat = g.op("ReduceSum", valued, g.ints([1]), keepdims=1)
                parts, start = [], 1
                for vocabulary in spec.vocabularies:
                    shifted = g.op("Div", flat, g.ints([start]))
                    parts.append(g.op("Mod", shifted, g.ints([vocabulary])))
                    start *= vocabulary
                tokens = g.op("Concat", *parts, axis=1)
            g.output(contract.CODES, codes)
            perm = [0, *range(2, axes + 2), 1]
            g.output(contract.TOKENS, g.op("Transpose", tokens, perm=perm))
        return g

    return write


def grid_of(g, value, axes):
    return g.op("Gather", g.op("Shape", value), g.ints(list(range(axes + 1))), axis=0)


def split_shape(g, value, strides, divide):
    """(B, 3, n1, s1, n2, s2, ...) of an image, or (B, 3, n1 * s1, ...) of codes."""
    shape = g.op("Shape", value)
    parts = [g.op("Gather", shape, g.ints([0]), axis=0), g.ints([3])]
    for axis, stride in enumerate(strides, start=2):
        side = g.op("Gather", shape, g.ints([axis]), axis=0)
        if divide:
            parts += [g.op("Div", side, g.ints([stride])), g.ints([stride])]
        else:
            parts.append(g.op("Mul", side, g.ints([stride])))
    return g.op("Concat", *parts, axis=0)


@pytest.fixture
def registered(monkeypatch):
    for spec in (Ternary, TernaryVideo):
        names = (contract.ENCODER, spec.quantizer, contract.DECODER)
        graphs = {name: graph(name) for name in names}
        monkeypatch.setitem(FAMILIES, spec.family, Family(spec, Module, Layout(spec), graphs))


def made(folder, spec, **overrides):
    write_random_checkpoint(folder / "toy.pt", spec, seed=1)
    checkpoint = read_checkpoint(folder / "toy.pt", overrides=overrides)
    assert checkpoint.spec == spec
    export_bundle(checkpoint, folder / "toy.bundle", "toy")
    manifest = build_engine(folder / "toy.bundle", folder / "toy.engine", "onnxruntime")
    assert manifest.parity.passed
    return folder / "toy.engine"


AR = ModelSpec(
    Ternary(5), TransformerSpec(16, 2, 2, 1, 24, (3, 2), 4, (9, 27), 10000.0)
)  # fmt: skip


@pytest.fixture
def engine(registered, tmp_path):
    return made(tmp_path, AR, heads=2, grid=(3, 2))


def test_a_spec_of_another_family_survives_json(registered):
    assert ModelSpec.from_json(json.loads(json.dumps(AR.to_json()))) == AR
    with pytest.raises(SpecError, match="do not make up 5 ternary digits"):
        ModelSpec(Ternary(5), TransformerSpec(16, 2, 2, 1, 24, (3, 2), 4, (8, 32), 1e4))


def test_its_images_are_drawn_encoded_and_decoded(engine, tmp_path):
    with m2kit.open_engine(engine) as opened:
        tokens = opened.sample(np.arange(20) % 4, m2kit.Sampling(seed=1))
        assert tokens.shape == (20, 3, 2, 2)
        assert tokens[..., 0].max() == 8 and 20 < tokens[..., 1].max() < 27
        images = opened.decode(tokens)
        assert images.shape == (20, 3, 6, 8)
        codes = opened.spec.tokenizer.codes_from_tokens(tokens, (9, 27))
        assert set(np.unique(codes)) == {-1.0, 0.0, 1.0}
        found = opened.quantize(codes)
        np.testing.assert_array_equal(found[1], tokens)
        assert opened.encode(np.zeros((1, 3, 4, 12), np.float32)).shape == (1, 2, 3, 2)
        write_tokens(tmp_path / "t.npz", token_file_from_ids(tokens, opened.spec))
        read = read_tokens_of(tmp_path / "t.npz", opened.spec)
        assert read.vocabularies == (9, 27) and read.image_size == (6, 8)
        with pytest.raises(InputError, match="multiples of 2 x 4, found 4 x 6"):
            opened.encode(np.zeros((1, 3, 4, 6), np.float32))


def test_the_commands_take_it(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["describe", "toy.engine"],
        ["describe", "toy.pt", "--spec", '{"heads": 2, "grid": [3, 2]}'],
        ["inspect", "toy.bundle"],
        ["verify", "toy.engine"],
        ["generate", "-n", "1", "--tokens", "t.npz"],
        ["decode", "t.npz"],
        ["encode", "decoded.png", "--pad"],
        ["reconstruct", "decoded.png", "--pad"],
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, (words, done.output)
    done = CliRunner().invoke(cli, ["convert-tokens", "t.npz", "--bits", "8", "--bit-order", "lsb"])
    assert done.exit_code == 1 and "cannot be split otherwise" in done.output


def test_a_third_axis_goes_the_whole_way(registered, tmp_path):
    engine = made(tmp_path, ModelSpec(TernaryVideo(4), None))
    with m2kit.open_engine(engine) as opened:
        clip = np.random.default_rng(0).uniform(-1, 1, (2, 3, 6, 4, 8)).astype(np.float32)
        tokens = opened.encode(clip)
        assert tokens.shape == (2, 3, 2, 2, 1) and tokens.max() > 26
        assert opened.decode(tokens).shape == clip.shape
        with pytest.raises(InputError, match=r"shape \(B, 3, T, H, W\)"):
            opened.encode(clip[:, :, 0])
    done = CliRunner().invoke(cli, ["bench", "--engine", str(engine), "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)  # a model without convolutions has no share of them
    assert found["encode"]["median_ms"] > 0 and found["eager_decode_ms"] > 0
    assert (found["encode"]["macs"], found["convolution"]) == (None, None)
