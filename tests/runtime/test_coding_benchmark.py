"""What a benchmark of a tokenizer times and what not, on a clock of the test's own."""

from types import SimpleNamespace

import numpy as np
import pytest
from doubles.fake_backend import FakeBackend

from m2kit import contract
from m2kit.config import ModelSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.runtime.bench import coding, convolution, steadiness
from m2kit.runtime.engine import Engine

SPEC = ModelSpec(ImageTokenizerSpec(32, (1, 2), 1, 4, True, "lsb"), None)
SIZE = (8, 16)
MACS = {
    part: sum(layer.macs for layer in layers)
    for part, layers in SPEC.tokenizer.convolutions(SIZE).items()
}


class Timed(FakeBackend):
    """Takes so many seconds for an encoding, twice as many for a decoding, and more at first."""

    def __init__(self, clock, name, seconds):
        super().__init__(SPEC)
        self.clock, self.name, self.seconds, self.first = clock, name, seconds, 50.0

    def images_at_once(self, size):
        return 3

    def run(self, graph, feeds):
        if graph != SPEC.tokenizer.quantizer:
            self.clock.calls.append((self.name, graph))
            self.clock.now += self.seconds * (2 if graph == contract.DECODER else 1) + self.first
            self.first = 0.0
        return super().run(graph, feeds)


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=0.0, calls=[])
    for module in (coding, convolution, steadiness):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def opener(clock, speeds):
    """Convolutions at 2e9 multiply-adds a second, or at the next of some speeds in turn."""
    asked = []

    def opened(layer, pictures):
        asked.append((layer, pictures))
        rates = iter(speeds)

        def run():
            clock.now += pictures * layer.macs / 1e9 / next(rates, 2.0)

        return run

    return opened, asked


def test_first_calls_are_not_timed_and_baselines_have_their_turn_in_every_round(clock):
    own = Engine(SPEC, Timed(clock, "own", 0.5))
    made = []

    def eager():
        made.append(list(clock.calls))
        return Engine(SPEC, Timed(clock, "eager", 2.0))

    found = coding.benchmark_coding(own, SIZE, batch=2, rounds=2, baselines={"eager": eager})
    both = [contract.ENCODER, contract.DECODER]
    assert made == [[("own", graph) for graph in both]]  # after memory was looked at
    turns = [(name, graph) for _ in range(3) for name in ("own", "eager") for graph in both]
    assert clock.calls == turns
    assert (found.encode.median_ms, found.decode.median_ms) == (250, 500)  # of one picture of two
    other = found.baselines["eager"]
    assert (other.encode_ms, other.decode_ms) == (1000, 2000)
    assert other.encode_speedup == other.decode_speedup == 4
    assert (found.convolution, found.encode.share_of_convolution) == (None, None)
    assert found.encode.macs == MACS["encoder"] and found.steady


def test_the_share_is_what_the_convolution_would_have_taken(clock):
    opened, asked = opener(clock, [])
    own = Engine(SPEC, Timed(clock, "own", 0.5))
    found = coding.benchmark_coding(own, SIZE, batch=4, rounds=1, opened=opened)
    assert [(layer.channels_in, layer.size, n) for layer, n in asked] == [
        (64, (4, 8), 3),
        (32, (8, 16), 3),
    ]  # as many at once as the engine takes; of each level what keeps its channels
    assert found.convolution.gmac_s == pytest.approx(2.0)
    seconds = 4 * MACS["encoder"] / 2e9  # of four pictures, in two runs of half a second
    assert found.encode.share_of_convolution == pytest.approx(seconds / 1.0, rel=1e-2)


@pytest.mark.parametrize(("seconds", "attempts"), [(1.0, 3), (61.0, 1)])
def test_a_busy_machine_is_measured_again_unless_that_takes_long(clock, seconds, attempts):
    reads = iter([10.0, 20.0] * 3)

    def measure():
        clock.now += seconds
        return "found"

    found, readings = steadiness.measured_between(lambda again: next(reads), measure, 60.0)
    assert (found, readings.attempts, readings.steady) == ("found", attempts, False)
    assert (readings.before, readings.after, readings.best) == (10.0, 20.0, 20.0)


def test_the_fastest_convolution_is_chosen_by_its_best_run(clock):
    layers = SPEC.tokenizer.convolutions(SIZE)["encoder"]

    def opened(layer, pictures):
        return opener(clock, [1.0, 5.0 if layer.channels_in == 32 else 4.0])[0](layer, pictures)

    best = convolution.fastest(layers, 1, opened)
    assert best.layer.channels_in == 32 and best.layer.size == SIZE


def test_the_convolution_of_onnx_runtime_is_the_layer(exported, monkeypatch):
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    from conftest import GOLDEN

    import m2kit
    from m2kit.engines.ort.convolution import open_convolution
    from m2kit.families.convolution import Convolution

    with m2kit.open_engine(exported(GOLDEN / "video_tiny.ckpt")[1]) as engine:
        fed, session = {}, engine.backend.ort.InferenceSession

        class Watched:
            def __init__(self, model, *arguments, **options):
                (weights,) = onnx.load_from_string(model).graph.initializer
                fed["w"] = onnx.numpy_helper.to_array(weights)
                self._session = session(model, *arguments, **options)

            def run(self, names, feeds):
                fed.update(feeds)
                return self._session.run(names, feeds)

        monkeypatch.setattr(engine.backend.ort, "InferenceSession", Watched)
        for size in ((3, 4, 5), (6, 4)):
            (made,) = open_convolution(engine.backend, Convolution(4, 6, size), 2)()
            convolve = torch.nn.functional.conv3d if len(size) == 3 else torch.nn.functional.conv2d
            weights, noise = (torch.from_numpy(fed[name].copy()) for name in "wx")
            assert weights.shape == (6, 4, *[3] * len(size)) and noise.std() > 0.5
            expected = convolve(noise, weights, padding=1).numpy()
            np.testing.assert_allclose(made, expected, atol=1e-5)
