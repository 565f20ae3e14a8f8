"""Engines opened from folders, on ONNX Runtime, with the digits example."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import m2kit
from m2kit.errors import BackendError, FolderError, InputError, ParityError
from m2kit.runtime.comparison import compare
from m2kit.runtime.reference import read_reference

pytest.importorskip("onnxruntime")


@pytest.fixture
def copied(digits_engine, tmp_path):
    """A copy of the engine that may be damaged."""
    return shutil.copytree(digits_engine, tmp_path / "digits.engine")


def test_images_do_not_depend_on_batch_order_or_neighbours(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        classes = np.arange(30) % 10
        sampling = m2kit.Sampling(seed=11)
        together = engine.sample(classes, sampling)
        order = np.random.default_rng(0).permutation(30)
        parts = [
            engine.sample(classes[part], sampling, image_numbers=part)
            for part in np.split(order, [1, 4, 11])
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together[order])
        whole = engine.decode(together)
        singly = np.concatenate([engine.decode(tokens[None]) for tokens in together])
        np.testing.assert_allclose(singly, whole, atol=1e-5)


def test_an_engine_carries_what_it_is_and_its_defaults(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        assert engine.info.kind == "engine"
        assert engine.info.built.backend == "onnxruntime"
        assert engine.info.parity.passed
        assert engine.spec.transformer.grid == (4, 4)
        default = engine.sample([3], m2kit.Sampling(seed=1))
        stated = engine.sample([3], m2kit.Sampling(seed=1, guidance=engine.defaults.guidance))
        np.testing.assert_array_equal(default, stated)


def test_the_reference_notices_a_wrong_graph(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        reference = read_reference(digits_engine, engine.spec)
        assert compare(engine, reference).passed
        first, second = reference.trajectory.logits
        tokens = reference.tokens.copy()
        tokens[0, 0, 0, 0] ^= 1
        wrong = replace(reference.trajectory, logits=(first, second + np.float32(0.01)))
        report = compare(engine, replace(reference, tokens=tokens, trajectory=wrong))
        failed = {name for name, check in report.checks.items() if not check.passed}
        assert {"decoder", "logits of sub-token 1", "greedy trajectory"} <= failed
        with pytest.raises(ParityError, match="greedy trajectory"):
            report.require("the engine")


@pytest.mark.parametrize("name", ["weights.bin", "inter_step.onnx", "engine.json", "reference.npz"])
def test_a_changed_byte_anywhere_is_found(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(FolderError):
        m2kit.open_engine(copied)


def test_a_missing_file_is_named(copied):
    (copied / "lfq.onnx").unlink()
    with pytest.raises(FolderError, match=r"lfq\.onnx: missing"):
        m2kit.open_engine(copied)


def test_an_engine_of_another_backend_is_refused(copied):
    from m2kit.hashes import sha256_of_json

    path = copied / "engine.json"
    value = json.loads(path.read_text())
    value["build"]["backend"] = "abacus"
    del value["digest"]
    path.write_text(json.dumps(value | {"digest": sha256_of_json(value)}))
    with pytest.raises(
        BackendError, match="for the backend 'abacus', this m2kit runs tensorrt, onnxruntime"
    ):
        m2kit.open_engine(copied)


def test_a_missing_provider_is_an_error_and_never_a_fallback(digits_engine):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(BackendError, match="no CUDAExecutionProvider"):
        m2kit.open_engine(digits_engine, provider="cuda")


def test_a_provider_that_falls_back_is_an_error(digits_engine, monkeypatch, gpu):
    """onnxruntime-gpu offers CUDA on a machine without a GPU and then quietly runs on the CPU."""
    import onnxruntime

    gpu()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options)
    )
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider"):
        m2kit.open_engine(digits_engine, provider="cuda")


def test_the_runtime_runs_where_the_heavy_packages_are_missing(digits_engine):
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "onnx", "onnx_ir", "lightning", "polygraphy", "click"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import m2kit
with m2kit.open_engine({str(digits_engine)!r}) as engine:
    tokens = engine.sample([1, 2], m2kit.Sampling(seed=1))
    images = engine.decode(tokens)
    engine.score([1, 2], tokens)
    print(engine.encode(images.clip(-1, 1)).shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 4, 4, 2)", done.stderr


@pytest.mark.gpu
def test_cuda_draws_the_ids_of_the_cpu(digits_engine):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an NVIDIA GPU and onnxruntime-gpu")
    try:
        with m2kit.open_engine(digits_engine, provider="cuda") as engine:
            on_gpu = engine.sample(np.arange(10), m2kit.Sampling(seed=1))
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    with m2kit.open_engine(digits_engine) as engine:
        np.testing.assert_array_equal(on_gpu, engine.sample(np.arange(10), m2kit.Sampling(seed=1)))


def test_a_failure_inside_onnxruntime_is_a_backend_error(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        with pytest.raises(BackendError, match="ONNX Runtime failed in decoder"):
            engine.backend.run("decoder", {"codes": np.zeros((1, 3, 4, 4), np.float32)})
        steps = engine.backend.open_steps(1)
        steps.intra.inputs["sub_token"][:] = 10_000
        with pytest.raises(BackendError, match="ONNX Runtime failed in a step"):
            steps.intra.run(1)


def test_a_closed_engine_says_so(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        pass
    with pytest.raises(InputError, match="was closed"):
        engine.sample([0])


def test_a_user_without_a_home_can_open_an_engine(digits_engine, monkeypatch):
    from pathlib import Path

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with m2kit.open_engine(digits_engine) as engine:
        assert engine.spec.transformer


def test_sessions_are_asked_for_float32_and_not_tf32_on_one_stream(digits_engine, monkeypatch, gpu):
    import onnxruntime

    cuda, _ = gpu()
    asked, streams = [], []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: (
            asked.extend(providers),
            streams.extend(cuda.streams),
            real(path, options),
        )[-1],
    )
    with pytest.raises(BackendError, match="fell back"):
        m2kit.open_engine(digits_engine, provider="cuda")
    (stream,) = map(str, streams)
    wanted = {"use_tf32": "0", "user_compute_stream": stream}
    assert asked == [("CUDAExecutionProvider", wanted)]


def test_rows_of_stopped_images_are_computed_no_further(digits_engine, monkeypatch):
    samplings = [m2kit.Sampling(seed=1, guidance=g) for g in (1.0, 3.0, 2.0, 1.0)]
    numbers, positions = [3, 1, 0, 2], 16
    with m2kit.open_engine(digits_engine) as engine:
        alone = [
            engine.sample([n], s, image_numbers=[n])[0].reshape(positions, -1)
            for n, s in zip(numbers, samplings, strict=True)
        ]
        opened, open_steps = [], engine.backend.open_steps
        monkeypatch.setattr(
            engine.backend, "open_steps", lambda rows: opened.append(rows) or open_steps(rows)
        )
        leaving = {4: {1}, 9: {1, 3}}
        gone = set()
        found = engine.generate(
            numbers, samplings, image_numbers=numbers, stopped=lambda: set(gone)
        )
        for last in found:
            gone |= leaving.get(last.position, set())
        tokens = last.tokens.reshape(4, positions, -1)
    assert opened == [6, 4, 3]
    for image, ends in enumerate((positions, 5, positions, 10)):
        np.testing.assert_array_equal(tokens[image, :ends], alone[image][:ends])
        assert not tokens[image, ends:].any()
