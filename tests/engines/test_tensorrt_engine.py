"""The TensorRT backend on doubles of TensorRT and CUDA: the same ids as ONNX Runtime's, and nothing
that a GPU would punish."""

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT, GOLDEN
from doubles.cuda_double import Misuse

import m2kit
from m2kit import contract
from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine
from m2kit.engines.half_precision import write_half
from m2kit.errors import BackendError, InputError
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.precision import Precision
from m2kit.runtime.engine import Engine
from m2kit.runtime.ort.backend import OnnxRuntimeBackend
from m2kit.runtime.trt.library import error_log
from m2kit.sampling import Sampling

pytest.importorskip("torch")
MODELS = {"ar_tiny": (GOLDEN / "ar_tiny.ckpt", {"heads": 4}), "digits": (DIGITS_CHECKPOINT, {})}
BATCH = 3


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    """Builds the plans of a model once: (model, precision) -> engine folder."""
    made = {}

    def build(model, precision, **options):
        key = (model, precision, *sorted(options.items()))
        if key not in made:
            path, overrides = MODELS[model]
            folder = tmp_path_factory.mktemp("trt") / f"{model}.engine"
            bundle = exported(path, **overrides)[0]
            given = {"batch": BATCH, "precision": Precision(precision)} | options
            build_engine(bundle, folder, "tensorrt", BuildOptions(**given))
            made[key] = folder
        return made[key]

    return build


@pytest.fixture
def reference(exported, tmp_path):
    """The same graphs on ONNX Runtime: (model, precision) -> Engine."""

    def engine(model, precision):
        path, overrides = MODELS[model]
        bundle, folder = exported(path, **overrides)
        if precision == "float32":
            return m2kit.open_engine(folder)
        manifest = read_manifest(bundle, BUNDLE)
        half = write_half(bundle, manifest, tmp_path)
        return Engine(manifest.spec, OnnxRuntimeBackend(tmp_path, half), defaults=manifest.sampling)

    return engine


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    ("sampling", "images"),
    [
        (Sampling(seed=3, guidance=2.0), BATCH),  # guided: every row is used
        (Sampling(seed=4, guidance=(1.5, 2.5)), 1),  # a short batch
        (Sampling(seed=5, guidance=1.0), 2 * BATCH),  # R rows serve R unguided images
        (Sampling(seed=6, guidance=(1.0, 3.0), greedy=True), 2),
    ],
    ids=["guided", "short", "unguided", "greedy"],
)
def test_it_draws_the_ids_of_onnxruntime(built, reference, gpu, model, precision, sampling, images):
    gpu()
    classes = np.arange(images) % 3
    with m2kit.open_engine(built(model, precision)) as engine, reference(model, precision) as exact:
        tokens = engine.sample(classes, sampling)
        np.testing.assert_array_equal(tokens, exact.sample(classes, sampling))
        few = tokens[:BATCH]
        decoded = engine.decode(few)
        np.testing.assert_allclose(decoded, exact.decode(few), atol=1e-4)
        pictures = np.clip(decoded, -1, 1)
        np.testing.assert_array_equal(engine.encode(pictures), exact.encode(pictures))


def test_a_position_is_one_launch_a_graph_and_nothing_is_allocated_in_the_loop(built, gpu):
    cuda, _ = gpu()
    with m2kit.open_engine(built("ar_tiny", "float16")) as engine:
        assert engine.backend.active()["cuda_graphs"] == "no step graph was opened"
        steps = engine.generate([1, 2], Sampling(seed=1))
        next(steps)
        before, launches, executions = len(cuda.calls), cuda.launches, cuda.executions
        positions = sum(1 for _ in steps)
        sub_tokens = engine.spec.sub_tokens
        assert cuda.launches - launches == positions * (1 + sub_tokens)
        assert cuda.executions == executions  # nothing runs outside the recorded graphs
        assert set(cuda.calls[before:]) == {
            "cuGraphLaunch", "cuMemcpy3DAsync", "cuStreamSynchronize"
        }  # fmt: skip
        commits = cuda.calls[before:].count("cuMemcpy3DAsync")
        assert commits == positions * sub_tokens  # the last sub-token's row is read by nobody
        waits = cuda.calls[before:].count("cuStreamSynchronize")
        assert waits == positions * sub_tokens  # the host waits for logits alone
        assert engine.backend.active()["cuda_graphs"] == {"inter_step": "yes", "intra_step": "yes"}
    gc.collect()
    assert (cuda.leaks(), cuda.misused) == ((0, 0, 0), [])


def test_another_thread_than_the_one_that_opened_it_may_draw(built, gpu):
    """A thread has no CUDA context of its own, and a server opens an engine in another one."""
    cuda, _ = gpu()
    options = Sampling(seed=1)
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        expected = engine.sample([1, 2], options)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(engine.sample, [1, 2], options).result()
            pool.submit(engine.backend.close).result()
    np.testing.assert_array_equal(found, expected)
    assert cuda.leaks() == (0, 0, 0)


def test_a_short_batch_is_filled_up_with_repeats_of_its_last_row(built, gpu):
    gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        engine.sample([1, 2, 3], Sampling(guidance=2.0, seed=1))
        engine.sample([2], Sampling(guidance=2.0, seed=2))
        arrays = engine.backend._steps._memory.memory.arrays
        assert arrays["inter_step/class_id"].tolist() == [2, *[engine.spec.transformer.classes] * 5]
        tokens = arrays["inter_step/token"]  # its first rows were written after the last run
        assert (tokens[2:] == tokens[2]).all()
        image = np.full((1, 3, 16, 16), 0.5, np.float32)
        engine.encode(np.zeros((3, 3, 16, 16), np.float32))
        engine.encode(image)
        (graph,) = (g for key, g in engine.backend._tokenizer.items() if key[0] == "encoder")
        assert (graph._memory.arrays["image"] == 0.5).all()


def test_where_capture_fails_it_runs_without_and_says_so(built, reference, gpu):
    cuda, _ = gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        cuda.fail["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        tokens = engine.sample([1, 2], Sampling(seed=1))
        graphs = engine.backend.active()["cuda_graphs"]
        assert graphs["inter_step"].startswith("no: CUDA failed in cuStreamEndCapture")
        assert graphs["intra_step"] == "yes"
    with reference("ar_tiny", "float32") as exact:
        np.testing.assert_array_equal(tokens, exact.sample([1, 2], Sampling(seed=1)))


def test_an_older_generation_cannot_go_on_over_a_newer_one(built, gpu):
    gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        first = engine.generate([1], Sampling(seed=1))
        next(first)
        expected = engine.sample([2], Sampling(seed=2))
        with pytest.raises(BackendError, match="another generation has begun"):
            next(first)
        np.testing.assert_array_equal(engine.sample([2], Sampling(seed=2)), expected)
        third = engine.generate([1], Sampling(seed=1))
        next(third)
    with pytest.raises(BackendError, match="was closed"):
        next(third)
    with pytest.raises(InputError, match="this engine was closed"):
        engine.encode(np.zeros((1, 3, 16, 16), np.float32))


def test_a_generation_that_begins_late_does_not_touch_the_one_that_runs(built, gpu):
    cuda, _ = gpu()
    options = Sampling(seed=1, guidance=2.0)
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        expected = engine.sample([1, 2], options)
        stale, running = (engine.generate([1, 2], options) for _ in range(2))
        next(running)
        with pytest.raises(BackendError, match="another generation has begun"):
            next(stale)
        *_, last = running
        np.testing.assert_array_equal(last.tokens, expected)
        late = engine.generate([1], options)
    with pytest.raises(BackendError, match="was closed"):
        next(late)
    assert cuda.leaks() == (0, 0, 0)  # and freed memory was not written


@pytest.mark.parametrize("when", ["execute_async_v3", "set_tensor_address"])
def test_what_was_allocated_before_a_failure_is_given_back(built, gpu, monkeypatch, when):
    cuda, trt = gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        monkeypatch.setattr(trt.IExecutionContext, when, lambda *arguments: False)
        for _ in range(2):
            with pytest.raises(BackendError, match=r"TensorRT (failed in|refuses)"):
                engine.sample([1])
        if when == "set_tensor_address":
            with pytest.raises(BackendError, match="TensorRT refuses"):
                engine.encode(np.zeros((1, 3, 16, 16), np.float32))
        assert cuda.leaks() == (0, 1, 0)
    assert cuda.leaks() == (0, 0, 0)


def test_engines_of_one_process_share_a_logger_and_tell_their_own_reasons(built, gpu, monkeypatch):
    """TensorRT keeps the first logger it is given, and warns of others."""
    _, trt = gpu()
    folder = built("ar_tiny", "float32")
    with m2kit.open_engine(folder) as first, m2kit.open_engine(folder) as second:
        reasons, original = ["no such tactic"], trt.Runtime.deserialize_cuda_engine

        def refuse(self, data):
            if reasons:
                self._log.log(trt.ILogger.ERROR, reasons.pop())

        monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", refuse)
        with pytest.raises(BackendError, match="no such tactic; build the engine again"):
            first.encode(np.zeros((1, 3, 16, 16), np.float32))
        with pytest.raises(BackendError, match="it gives no reason"):
            second.sample([1])
        monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", original)
        np.testing.assert_array_equal(first.sample([1]), second.sample([1]))


def test_memory_that_is_short_at_opening_is_told_as_such(built, gpu, monkeypatch):
    _, trt = gpu()

    def refuse(self, data):
        self._log.log(0, "Requested amount of GPU memory could not be allocated: OutOfMemory")

    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", refuse)
    with (
        m2kit.open_engine(built("ar_tiny", "float32")) as engine,
        pytest.raises(BackendError, match=r"OutOfMemory; close other programs on the GPU"),
    ):
        engine.sample([1])


def test_more_images_than_it_takes_at_once_are_computed_in_parts(
    built, reference, gpu, monkeypatch
):
    gpu()
    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 16, 16)).astype(np.float32)
    classes, guided = np.arange(4) % 3, Sampling(seed=1, guidance=2.0)
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        sizes, run = [], engine.backend.run

        def counted(graph, feeds):
            sizes.extend(len(feed) for feed in feeds.values())
            return run(graph, feeds)

        monkeypatch.setattr(engine.backend, "run", counted)
        tokens = engine.encode(images)
        decoded = engine.decode(tokens)
        assert sorted(sizes) == [1, 1, 1, 3, 3, 3]
        drawn = engine.sample(classes, guided)
        latents = engine.latents(images)
        codes, again = engine.quantize(latents)
        scored = engine.score(np.arange(8) % 3, np.concatenate([tokens, tokens]))
        assert [engine.largest_draw(Sampling(guidance=scale)) for scale in (1.0, 2.0)] == [6, 3]
    with reference("ar_tiny", "float32") as exact:
        np.testing.assert_array_equal(tokens, exact.encode(images))
        np.testing.assert_array_equal(again, tokens)
        np.testing.assert_array_equal(codes, exact.quantize(latents)[0])
        np.testing.assert_allclose(latents, exact.latents(images), atol=1e-4)
        np.testing.assert_allclose(decoded, exact.decode(tokens), atol=1e-4)
        np.testing.assert_array_equal(drawn, exact.sample(classes, guided))
        expected = exact.score(np.arange(8) % 3, np.concatenate([tokens, tokens]))
        for part, right in zip(scored, expected, strict=True):
            np.testing.assert_allclose(part, right, atol=1e-4)


def test_images_of_another_number_or_size_name_the_option(built, gpu):
    gpu()
    folder = built("ar_tiny", "float32")
    command = read_manifest(folder, ENGINE).rebuild_command(folder, ((16, 24),))
    assert command.endswith("--precision fp32 --batch 3 --image-size 16,24")
    with m2kit.open_engine(folder) as engine:
        with pytest.raises(
            InputError, match=r"takes 3 images at once, asked for 4: take a batch of 3"
        ):
            engine.backend.run("encoder", {"image": np.zeros((4, 3, 16, 16), np.float32)})
        with pytest.raises(InputError, match=r"6 rows .* asked for 8: take a batch of 3"):
            next(engine.generate([0, 1, 2, 3], Sampling(guidance=2.0)))
        with pytest.raises(InputError, match=r"takes images of 16 x 16 .*found 16 x 24; ") as error:
            engine.encode(np.zeros((1, 3, 16, 24), np.float32))
        assert str(error.value).endswith(f"build it with `{command}`")


def test_a_second_image_size_has_plans_of_its_own(built, reference, gpu):
    gpu()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 24)).astype(np.float32)
    engine_folder = built("ar_tiny", "float32", image_sizes=((16, 24),))
    with m2kit.open_engine(engine_folder) as engine, reference("ar_tiny", "float32") as exact:
        tokens = engine.encode(images)
        np.testing.assert_array_equal(tokens, exact.encode(images))
        np.testing.assert_allclose(engine.decode(tokens), exact.decode(tokens), atol=1e-4)
        checks = engine.info.parity.checks
        assert checks["tokenizer at 16 x 24"].found == {"values not finite": 0}
        assert checks["tokenizer at 16 x 24"].passed
        assert "encoder" in checks
        square = images[..., :16]
        np.testing.assert_array_equal(engine.encode(square), exact.encode(square))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda engine: engine["tensors"].pop("token"), "expected token as .*found None"),
        (lambda engine: engine["shapes"].update(token=[7, 2]), r"found \('INPUT', \(7, 2\)"),
    ],
)
def test_a_plan_that_is_not_the_contracts_is_refused(built, gpu, monkeypatch, edit, words):
    _, trt = gpu()
    original = trt.ICudaEngine.__init__

    def changed(self, log, header, model):
        original(self, log, header, model)
        if "token" in self._tensors:
            part = {"tensors": self._tensors, "shapes": {}}
            edit(part)
            for name, shape in part["shapes"].items():
                mode, _, dtype = self._tensors[name]
                self._tensors[name] = (mode, tuple(shape), dtype)

    monkeypatch.setattr(trt.ICudaEngine, "__init__", changed)
    with (
        m2kit.open_engine(built("ar_tiny", "float32")) as engine,
        pytest.raises(BackendError, match=words),
    ):
        engine.sample([1], Sampling(seed=1))


def test_cuda_out_of_memory_is_one_line_with_the_cure(built, gpu):
    cuda, _ = gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        cuda.memory = 1000
        with pytest.raises(BackendError, match=r"cuMemHostAlloc .*close other programs on the GPU"):
            engine.sample([1], Sampling(seed=1))
    cuda, _ = gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        cuda.fail["cuMemAlloc"] = "CUDA_ERROR_OUT_OF_MEMORY"
        with pytest.raises(BackendError, match=r"cuMemAlloc .*smaller batch"):
            engine.sample([1], Sampling(seed=1))
        assert engine.sample([1], Sampling(seed=1)).shape == (1, 4, 4, 2)  # and works afterwards


def test_a_launch_that_fails_is_reported(built, gpu):
    cuda, _ = gpu()
    with m2kit.open_engine(built("ar_tiny", "float32")) as engine:
        steps = engine.generate([1], Sampling(seed=1))
        next(steps)
        cuda.fail["cuGraphLaunch"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
        with pytest.raises(BackendError, match=r"cuGraphLaunch .CUDA_ERROR_ILLEGAL_ADDRESS: what"):
            next(steps)


def test_the_gate_goes_in_as_many_rows_as_the_engine_has(built, gpu):
    """A reference of two guided images is four rows; an engine for one image takes two."""
    gpu()
    folder = built("digits", "float16", batch=1)
    manifest = read_manifest(folder, ENGINE)
    assert manifest.built.rows == 2
    assert manifest.parity.passed
    assert manifest.parity.precision == "float16 against float32"
    assert manifest.parity.devices == ("Test GPU (8.6, 28 SM, 12 GB)",)


def test_the_double_refuses_what_tensorrt_forbids(built, gpu):
    cuda, trt = gpu()
    path = built("ar_tiny", "float32") / contract.plan_file(contract.INTRA_STEP)
    log = error_log(trt)
    assert trt.Runtime(log).deserialize_cuda_engine(path.read_bytes()[100:]) is None
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy)
    (_, stream), (_, memory) = cuda.cuStreamCreate(1), cuda.cuMemAlloc(1 << 20)
    memory = int(memory)
    assert not context.execute_async_v3(int(stream))
    assert "no address was set" in log.reason()
    assert not context.set_tensor_address("sub_token", memory + 128)
    with pytest.raises(Misuse, match="not in one live allocation"):
        context.set_device_memory(memory + (1 << 20), 1000)
    del engine
    with pytest.raises(AssertionError, match="released before its context"):
        context.execute_async_v3(int(stream))


def test_a_plan_cut_short_is_damage_and_one_of_other_bytes_is_tensorrts_error(built, gpu, tmp_path):
    gpu()
    copied = tmp_path / "ar_tiny.engine"
    shutil.copytree(built("ar_tiny", "float32"), copied)
    plan = copied / "inter_step.plan"
    data = plan.read_bytes()
    plan.write_bytes(data[:-1000])
    with pytest.raises(m2kit.M2KitError, match=r"damaged: inter_step.plan: expected \d+ bytes"):
        m2kit.open_engine(copied)
    plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(m2kit.M2KitError, match=r"inter_step.plan: its bytes have changed"):
        m2kit.open_engine(copied)
