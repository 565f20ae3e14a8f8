"""m2kit bench: its figures, its table and its plot."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_m2kit

from m2kit.cli import benching
from m2kit.errors import BackendError
from m2kit.precision import Precision
from m2kit.runtime.bench import benchmark, memory

KEYS = {
    "bandwidth_gb_s", "stages", "position_ms", "position_share_of_limit", "image_ms",
    "eager_image_ms", "image_speedup_vs_eager", "overhead_share", "peak_memory_bytes", "machine",
    "versions",
}  # fmt: skip


def test_json_has_what_was_promised_and_it_adds_up(digits_engine, tmp_path):
    pytest.importorskip("torch")
    done = run_m2kit(
        "bench", "--engine", digits_engine, "--rounds", "1", "--plot", "b.png", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert set(value) >= KEYS
    stages = value["stages"]
    assert set(stages) == {"encode", "inter", "intra", "sampling", "position", "decode", "image"}
    for stage in stages.values():
        assert 0 < stage["median_ms"] <= stage["p95_ms"]
        assert "gb_s" in stage
    # 4 inter layers, an intra one run twice, both heads, three embedding rows; 4 bytes each
    width, ffn = 128, 384
    layer = 4 * width * width + 3 * width * ffn + 2 * width
    expected = 4 * layer + 2 * (layer + width) + width * (8 + 32) + 3 * width
    assert value["position_weight_bytes"] == 4 * expected
    limit = value["position_weight_bytes"] / value["bandwidth_gb_s"] / 1e6
    assert value["position_limit_ms"] == pytest.approx(limit, rel=0.02)
    assert value["position_share_of_limit"] == pytest.approx(limit / value["position_ms"], rel=0.02)
    assert value["image_speedup_vs_eager"] == pytest.approx(
        value["eager_image_ms"] / value["image_ms"], rel=0.02
    )
    assert value["images_per_second"] == pytest.approx(1e3 / value["image_ms"], rel=0.02)
    assert 0 < value["overhead_share"] < 1
    weights = {
        "inter": 4 * (4 * layer + 3 * width),
        "intra": 4 * (2 * (layer + width) + width * 40),
    }
    for name, count in weights.items():
        assert stages[name]["weight_bytes"] == count
        speed = count / stages[name]["median_ms"] / 1e6
        assert stages[name]["gb_s"] == pytest.approx(speed, rel=0.02)
    assert value["cache_bytes"] == 2 * 2 * (4 * 16 + 1 * 2) * width * 4  # 2 rows: guided
    parts = [value[f"{name}_bytes"] for name in ("weights", "cache", "decoder")]
    assert value["expected_memory_bytes"] == sum(parts)
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_the_table_names_every_stage_and_a_batch_is_counted(digits_engine, tmp_path):
    options = ("--engine", digits_engine, "--rounds", "1", "--no-baseline", "--batch", "3")
    done = run_m2kit("bench", *options, cwd=tmp_path)
    for word in ("bandwidth", "inter", "intra", "sampling", "decode", "limit", "3 at once"):
        assert word in done.stdout
    assert "PyTorch" not in done.stdout


def test_the_size_of_what_is_drawn_is_the_models_own(digits_engine, tmp_path):
    done = run_m2kit(
        "bench", "--engine", digits_engine, "--image-size", "8,8", cwd=tmp_path, check=False
    )
    assert done.returncode == 1 and "for tokenizers alone: this model draws its own" in done.stderr


def test_a_run_in_which_bandwidth_changed_is_repeated(digits_engine, monkeypatch):
    import m2kit

    reads = iter([10.0, 20.0, 20.0, 19.0])
    monkeypatch.setattr(benchmark, "bandwidth_gb_s", lambda threads: next(reads))
    with m2kit.open_engine(digits_engine) as engine:
        value = benchmark.benchmark(engine, m2kit.Sampling(), rounds=1)
    assert value.attempts == 2
    assert (value.bandwidth_before_gb_s, value.bandwidth_after_gb_s) == (20.0, 19.0)
    assert value.bandwidth_gb_s == 20.0
    assert value.steady


def test_a_machine_that_is_never_steady_is_reported(digits_engine, monkeypatch):
    import m2kit

    reads = iter([10.0, 20.0] * 3)
    monkeypatch.setattr(benchmark, "bandwidth_gb_s", lambda threads: next(reads))
    with m2kit.open_engine(digits_engine) as engine:
        value = benchmark.benchmark(engine, m2kit.Sampling(), images=2, rounds=1)
    assert (value.attempts, value.steady) == (3, False)
    assert value.images_per_second == pytest.approx(1e3 / value.image_ms, rel=0.02)
    assert value.stages["image"].median_ms == pytest.approx(2 * value.image_ms, rel=0.02)


def test_unguided_caches_have_a_row_for_each_image(digits_engine):
    import m2kit

    with m2kit.open_engine(digits_engine) as engine:
        found = [memory.cache_bytes(engine, rows) for rows in (1, 2)]
    assert found[1] == 2 * found[0]


def test_a_half_engines_caches_take_half_the_bytes(digits_engine):
    import m2kit

    with m2kit.open_engine(digits_engine) as engine:
        whole = memory.cache_bytes(engine, 2)
        engine.info = replace(engine.info, precision=Precision.FLOAT16)
        assert 2 * memory.cache_bytes(engine, 2) == whole


def test_describe_and_bench_count_the_same_weights_of_a_position(digits_engine):
    import m2kit

    with m2kit.open_engine(digits_engine) as engine:
        stored = memory.PositionWeights.of(engine.info.built.weight_bytes, 2)
        assert stored.total == 4 * engine.transformer.weights_per_position


@pytest.mark.parametrize(
    ("returncode", "stderr", "expected"),
    [
        (1, "drawing ...\nerror: x.engine: damaged\n", "generate failed: x.engine: damaged"),
        (-9, "drawing ...\n", "generate failed: killed by signal 9; lower --batch"),
        (1, "", "generate failed: it said nothing"),
    ],
)
def test_a_drawing_process_that_failed_says_why(monkeypatch, returncode, stderr, expected):
    def failed(command, **_):
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(benching.subprocess, "run", failed)
    with pytest.raises(BackendError) as caught:
        benching._peak_memory(Path("x.engine"), 1, {})
    assert str(caught.value).startswith(expected)
