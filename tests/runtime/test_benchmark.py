"""What a benchmark times and what not, on a clock of the test's own."""

from functools import partial
from types import SimpleNamespace

import pytest
from conftest import tiny_spec
from doubles.fake_backend import FakeBackend

from m2kit.runtime.backend import Steps, WatchedStep
from m2kit.runtime.bench import benchmark, timing
from m2kit.runtime.engine import Engine
from m2kit.sampling import Sampling


class SlowAtFirst(FakeBackend):
    """Its first runs of a step take 100 ms each, all others 1 ms."""

    def __init__(self, spec, clock, slow):
        super().__init__(spec)
        self.clock, self.slow = clock, slow

    def open_steps(self, rows):
        def run(step, position):
            self.clock.now += 0.1 if self.slow > 0 else 1e-3
            self.slow -= 1
            step.run(position)

        opened = super().open_steps(rows)
        return Steps(*(WatchedStep(s, partial(run, s)) for s in (opened.inter, opened.intra)))

    def run(self, graph, feeds):
        self.clock.now += 1e-3
        return super().run(graph, feeds)


def test_what_a_baseline_does_at_its_first_calls_is_not_timed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    for module in (benchmark, timing):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    spec = tiny_spec(grid=(4, 4))
    own, slow = (Engine(spec, SlowAtFirst(spec, clock, count)) for count in (0, 40))
    baselines = {"eager": benchmark.Baseline(slow), "few": benchmark.Baseline(slow, positions=2)}
    found = benchmark.benchmark(own, Sampling(), rounds=1, baselines=baselines)
    for comparison in found.baselines.values():
        assert comparison.image_ms == pytest.approx(found.image_ms)
        assert comparison.image_speedup == 1
