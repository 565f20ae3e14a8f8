"""Rounding by what weights do: GPTQ's integers, and the second moments that it goes by."""

import json

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT, run_m2kit

from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine
from m2kit.engines.graph_files import load_graph
from m2kit.engines.ort import moments, quantization, rounding
from m2kit.engines.ort.moments import draw_moments, images_needed
from m2kit.engines.ort.quantization import linears, quantize_blocks, quantize_by_moments
from m2kit.engines.ort.rounding import round_by_moments
from m2kit.errors import InputError
from m2kit.manifest import BUNDLE
from m2kit.manifest_file import read_manifest
from m2kit.precision import Precision
from m2kit.progress import silent


def restored(values, scales, bits, size_in):
    """What MatMulNBits makes of stored weights: (in, out) float32."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)
    steps = scales.reshape(*values.shape[:2], 1)
    return (
        ((values.astype(np.float32) - 2 ** (bits - 1)) * steps)
        .reshape(len(values), -1)[:, :size_in]
        .T
    )


def correlated(rows, size, seed=0):
    """Inputs (rows, size) float32, of a third as many independent numbers and a little noise."""
    generator = np.random.default_rng(seed)
    few = generator.standard_normal((rows, max(1, size // 3)))
    mixed = few @ generator.standard_normal((few.shape[1], size))
    return (mixed + 0.1 * generator.standard_normal(mixed.shape)).astype(np.float32)


def test_an_error_is_made_up_for_by_a_correlated_input(monkeypatch):
    # Of the last two inputs the first is rounded from 0.4 to 0: -0.4. What makes up for it best is
    # 0.4 * 2 / 4 more of the second, 0.6, which is rounded to 1. The errors over X are 4 * 0.16 +
    # 4 * 0.36 - 2 * 2 * 0.24 = 1.12; of both to the nearest, 0 and 0, 12 * 0.16 = 1.92.
    monkeypatch.setattr(rounding, "_DAMPING", 0.0)
    weight = np.array([[-8], [0.4], [0.4]], np.float32)
    of_inputs = np.array([[100, 0, 0], [0, 4, 2], [0, 2, 4]], np.float32)
    values, scales = round_by_moments(weight, of_inputs, 4, 32)
    assert scales.tolist() == [[1.0]]
    assert values.ravel().tolist() == [-8, 0, 1]
    error = rounding.output_error(weight, values, of_inputs)
    nearest = rounding.output_error(weight, np.array([[-8], [0], [0]], np.float32), of_inputs)
    np.testing.assert_allclose([error[0], nearest[0]], [1.12, 1.92], rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("size_in", "size_out", "block_size", "rows"),
    [(300, 7, 128, 1000), (96, 5, 64, 20), (32, 1, 32, 1), (7, 3, 128, 0), (130, 4, 32, 500)],
)
def test_no_output_is_further_off_than_rounded_to_the_nearest(
    bits, size_in, size_out, block_size, rows
):
    generator = np.random.default_rng(size_in)
    weight = generator.standard_normal((size_in, size_out)).astype(np.float32)
    weight[: min(block_size, size_in), 0] = 0  # a block without a scale
    x = correlated(rows, size_in)
    x[:, 1] = 0  # an input that is never used
    ours, plain = (
        restored(*quantize(weight), bits, size_in).astype(np.float64)
        for quantize in (
            lambda w: quantize_by_moments(w, x.T @ x, bits, block_size),
            lambda w: quantize_blocks(w, bits, block_size),
        )
    )
    error, nearest = (((x @ (found - weight)) ** 2).sum(axis=0) for found in (ours, plain))
    assert (error <= nearest * 1.001 + 1e-9).all()
    assert (ours[: min(block_size, size_in), 0] == 0).all()
    if rows >= 500 and bits == 4:
        assert error[1:].sum() < 0.5 * nearest[1:].sum()


def test_moments_that_overflow_round_to_the_nearest():
    weight = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    for wrong in (np.inf, np.nan):
        values, scales = quantize_by_moments(weight, np.full((40, 40), wrong, np.float32), 4, 32)
        plain, plain_scales = quantize_blocks(weight, 4, 32)
        np.testing.assert_array_equal(scales, plain_scales)
        assert (restored(values, scales, 4, 40) == restored(plain, scales, 4, 40)).mean() > 0.98


def test_the_factor_is_that_of_the_inverse():
    x = correlated(500, 201).astype(np.float64)
    matrix = x.T @ x
    factor = rounding._inverse_factor(matrix)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor @ matrix, np.eye(201), atol=1e-8)


def first_linear(bundle):
    """What the first matmul of the inter step reads, its weight, and what it gives."""
    source = read_manifest(bundle, BUNDLE)
    linear = next(linears(load_graph(bundle / source.graph_file("onnxruntime", "inter_step"))))
    weight = linear.source.numpy().copy()
    return source, linear.node.inputs[0].name, weight, linear.node.outputs[0].name


def test_moments_are_of_what_the_exact_model_computes(exported):
    bundle = exported(DIGITS_CHECKPOINT)[0]
    source, read, weight, given = first_linear(bundle)
    size_in, size_out = weight.shape
    wanted = {("inter_step", read): size_in, ("inter_step", given): size_out}
    told = []

    def begin(stage, total=None):
        told.append(total)
        return told.append

    found = draw_moments(bundle, source, wanted, begin, "drawing")
    inputs, outputs = found.values()
    np.testing.assert_allclose(
        weight.T.astype(np.float64) @ inputs @ weight, outputs, rtol=1e-3, atol=1e-2
    )
    spec, (total, *steps) = source.spec.transformer, told
    assert total == sum(steps) == images_needed(spec, 2) * spec.positions
    again = draw_moments(bundle, source, wanted, silent, "drawing")
    for name in wanted:
        np.testing.assert_array_equal(again[name], found[name])


def test_every_row_is_added_once(monkeypatch):
    monkeypatch.setattr(moments, "_ROWS_TOGETHER", 8)
    rows = np.random.default_rng(0).standard_normal((37, 3)).astype(np.float32)
    summed = moments._Moments(3)
    for part in np.split(rows, [1, 9, 30, 30]):
        summed.add(part)
    np.testing.assert_allclose(summed.total(), rows.T @ rows, rtol=1e-5)


def test_moments_that_do_not_fit_are_collected_in_parts_with_the_same_result(
    exported, tmp_path, monkeypatch
):
    bundle, stages = exported(DIGITS_CHECKPOINT)[0], []

    def begin(stage, total=None):
        stages.append(stage)
        return lambda count: None

    options = BuildOptions(precision=Precision.INT4, block_size=64)
    whole = build_engine(bundle, tmp_path / "a.engine", "onnxruntime", options, begin)
    assert whole.built.quantization.rounding == "gptq"
    assert whole.built.quantization.block_size == 64
    assert len([stage for stage in stages if "learn" in stage]) == 1
    spec = whole.spec.transformer
    monkeypatch.setattr(quantization, "_MOMENTS_BYTES", 4 * 5 * spec.width**2)
    parted = build_engine(bundle, tmp_path / "b.engine", "onnxruntime", options, begin)
    assert any("learn what the weights do, part 2 of" in stage for stage in stages)
    assert parted.files == whole.files


def test_heads_and_eight_bits_are_rounded_to_the_nearest(exported, tmp_path):
    bundle = exported(DIGITS_CHECKPOINT)[0]
    options = BuildOptions(precision=Precision.INT8)
    manifest = build_engine(bundle, tmp_path / "a.engine", "onnxruntime", options)
    assert manifest.built.quantization.rounding == "nearest"


def test_a_block_size_is_one_of_three_and_for_int4_alone(exported, tmp_path):
    bundle = exported(DIGITS_CHECKPOINT)[0]
    for size in ("48", "0", "-32", "x"):
        done = run_m2kit(
            "build-engine", bundle, "--precision", "int4", "--block-size", size,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and "is not one of '32', '64', '128'" in done.stderr
    for precision in ("int8", "fp32", "auto"):
        done = run_m2kit(
            "build-engine", bundle, "--backend", "onnxruntime", "--precision", precision,
            "--block-size", "64", cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"block_size is for int4 alone, found {precision}" in done.stderr
    for size in (48, 0, 256, True, 64.5, "64"):
        with pytest.raises(InputError, match="block_size"):
            BuildOptions(precision=Precision.INT4, block_size=size)
    done = run_m2kit(
        "build-engine", bundle, "-o", "a.engine", "--backend", "onnxruntime",
        "--precision", "int4", "--block-size", "32", cwd=tmp_path,
    )  # fmt: skip
    build = json.loads((tmp_path / "a.engine" / "engine.json").read_text())["build"]
    assert build["quantization"]["block_size"] == build["options"]["block_size"] == 32
    assert build["quantization"]["rounding"] == "gptq"
