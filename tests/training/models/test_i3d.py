import json

import numpy as np
import torch
from conftest import GOLDEN
from doubles.random_i3d import random_clip, with_random_weights
from torch.nn import functional

from m2kit.training.models.i3d import FRAMES, I3D, _Block, _Convolution, _Pool

MIXED = {  # channels in, and out of b0, b1a, b1b, b2a, b2b, b3b: GoogLeNet's table of Inception-v1
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
STAGES = {  # (channels, steps, height, width) of a clip of 17 frames
    "Conv3d_1a_7x7": (64, 9, 112, 112),
    "MaxPool3d_2a_3x3": (64, 9, 56, 56),
    "Conv3d_2b_1x1": (64, 9, 56, 56),
    "Conv3d_2c_3x3": (192, 9, 56, 56),
    "MaxPool3d_3a_3x3": (192, 9, 28, 28),
    "Mixed_3b": (256, 9, 28, 28),
    "Mixed_3c": (480, 9, 28, 28),
    "MaxPool3d_4a_3x3": (480, 5, 14, 14),
    "Mixed_4b": (512, 5, 14, 14),
    "Mixed_4c": (512, 5, 14, 14),
    "Mixed_4d": (512, 5, 14, 14),
    "Mixed_4e": (528, 5, 14, 14),
    "Mixed_4f": (832, 5, 14, 14),
    "MaxPool3d_5a_2x2": (832, 3, 7, 7),
    "Mixed_5b": (832, 3, 7, 7),
    "Mixed_5c": (1024, 3, 7, 7),
}


def published_shapes():
    """Name -> shape of every tensor, by the tables above."""
    convolutions = {
        "Conv3d_1a_7x7": (3, 64, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (64, 192, 3),
    }
    for block, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        convolutions[f"{block}.b0"] = (inputs, b0, 1)
        convolutions[f"{block}.b1a"] = (inputs, b1a, 1)
        convolutions[f"{block}.b1b"] = (b1a, b1b, 3)
        convolutions[f"{block}.b2a"] = (inputs, b2a, 1)
        convolutions[f"{block}.b2b"] = (b2a, b2b, 3)
        convolutions[f"{block}.b3b"] = (inputs, b3b, 1)
    shapes = {}
    for name, (inputs, outputs, side) in convolutions.items():
        shapes[f"{name}.conv3d.weight"] = (outputs, inputs, side, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    shapes["logits.conv3d.weight"] = (400, 1024, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (400,)
    return shapes


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reaches(size, window, step):
    """Elements, of those that there are, which each output looks at under TensorFlow's "same"."""
    outputs = int(np.ceil(size / step))
    left = max((outputs - 1) * step + window - size, 0) // 2
    starts = [i * step - left for i in range(outputs)]
    return [(max(start, 0), min(start + window, size), max(-start, 0)) for start in starts]


def windows(x, sides, steps):
    """(where, what is there, where that lies in the kernel) of every output of a window."""
    axes = zip(x.shape[2:], sides, steps, strict=True)
    t, h, w = ([*enumerate(reaches(*axis))] for axis in axes)
    for i, (t0, t1, kt) in t:
        for j, (h0, h1, kh) in h:
            for k, (w0, w1, kw) in w:
                there = x[:, :, t0:t1, h0:h1, w0:w1]
                kernel = tuple(
                    slice(first, first + n)
                    for first, n in zip((kt, kh, kw), there.shape[2:], strict=True)
                )
                yield (slice(None), slice(None), i, j, k), there, kernel


def slow_pool(x, sides, steps):
    sizes = [len(reaches(*axis)) for axis in zip(x.shape[2:], sides, steps, strict=True)]
    out = x.new_empty(*x.shape[:2], *sizes)
    for where, there, _ in windows(x, sides, steps):
        out[where] = there.amax((2, 3, 4))
    return out


def slow_convolution(x, weights, prefix, step=1):
    kernel = weights[f"{prefix}conv3d.weight"]
    sides, steps = kernel.shape[2:], (step,) * 3
    sizes = [len(reaches(*axis)) for axis in zip(x.shape[2:], sides, steps, strict=True)]
    out = x.new_empty(len(x), len(kernel), *sizes)
    for where, there, (t, h, w) in windows(x, sides, steps):
        out[where] = torch.einsum("bcthw,octhw->bo", there, kernel[:, :, t, h, w])
    scale, shift, mean, variance = (
        weights[f"{prefix}bn.{part}"].reshape(1, -1, 1, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((out - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp_min(0)


def slow_block(x, weights):
    def path(x, *names):
        for name in names:
            x = slow_convolution(x, weights, f"{name}.")
        return x

    pooled = slow_pool(x, (3, 3, 3), (1, 1, 1))
    paths = path(x, "b0"), path(x, "b1a", "b1b"), path(x, "b2a", "b2b"), path(pooled, "b3b")
    return torch.cat(paths, 1)


def test_names_and_shapes_are_those_of_the_published_network():
    found = {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()}
    assert found == published_shapes()


def test_it_has_as_many_parameters_as_its_table_says():
    expected = sum(
        int(np.prod(shape))
        for name, shape in published_shapes().items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert sum(p.numel() for p in I3D().parameters()) == expected == 12_697_264


def test_a_strided_convolution_is_the_slow_one_at_odd_and_even_sizes():
    module = with_random_weights(_Convolution(3, 5, 7, stride=2)).double()
    for size in ((9, 6, 7), (4, 5, 8), (1, 2, 3)):
        x = drawn(2, 3, *size)
        expected = slow_convolution(x, module.state_dict(), "", step=2)
        assert module(x).shape == expected.shape
        assert (module(x) - expected).abs().max() < 1e-12


def test_pools_are_the_slow_ones_at_odd_and_even_sizes():
    for sides, steps in (
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ):
        for size in ((9, 6, 7), (5, 4, 5), (1, 2, 3)):
            x = drawn(2, 3, *size).abs()
            assert torch.equal(_Pool(sides, steps)(x), slow_pool(x, sides, steps))


def test_a_block_is_the_slow_one():
    module = with_random_weights(_Block(6, 4, (3, 5), (2, 3), 2)).double()
    x = drawn(2, 6, 3, 5, 4).abs()
    assert (module(x) - slow_block(x, module.state_dict())).abs().max() < 1e-12


def test_every_stage_has_the_size_of_the_paper():
    network, found = I3D(), {}
    for name in STAGES:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _given, out, name=name: found.update({name: tuple(out.shape[1:])})
        )
    assert network(torch.zeros(1, 3, 17, 224, 224)).shape == (1, 400)
    assert found == STAGES
    assert list(found) == list(STAGES)


def test_logits_are_the_means_over_time_of_those_of_every_two_steps():
    network = with_random_weights(I3D())
    seen = []
    network.Mixed_5c.register_forward_hook(lambda _module, _given, out: seen.append(out))
    found = network(drawn(1, 3, 17, 224, 224).float())
    weight, bias = network.logits["conv3d"].weight.flatten(1), network.logits["conv3d"].bias
    steps = seen[0].mean((3, 4))  # (1, 1024, 3)
    pairs = [
        functional.linear((steps[..., i] + steps[..., i + 1]) / 2, weight, bias) for i in (0, 1)
    ]
    assert (found - sum(pairs) / 2).abs().max() < 1e-5 * found.abs().max()


def test_logits_are_those_that_videogpts_port_gave():
    expected = json.loads((GOLDEN / "i3d.json").read_text())
    network = with_random_weights(I3D(), expected["seed"])
    for frames in (FRAMES, 17):
        found, theirs = network(random_clip(frames))[0].double(), expected[f"{frames} frames"]
        scale = found.abs().max().item()
        assert (found[:8] - torch.tensor(theirs["first"])).abs().max() < 1e-5 * scale
        assert abs(found.norm().item() / theirs["norm"] - 1) < 1e-5
