"""bench: times an engine in this process, and takes its memory's peak in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import m2kit
from m2kit.cli.options import (
    COUNT,
    PATH,
    engine_option,
    given,
    json_option,
    only_folder,
    provider_option,
    sampling_options,
    size_from_text,
    threads_option,
    warn_of_quality,
)
from m2kit.cli.output import note, print_result, size_text, stages
from m2kit.cli.tokenizer_benching import bench_tokenizer
from m2kit.errors import BackendError, InputError, require
from m2kit.host import available_cores
from m2kit.manifest import ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.outputs import check_output
from m2kit.progress import Begin
from m2kit.records import JsonObject, to_json

if TYPE_CHECKING:
    from m2kit.runtime.bench.benchmark import Baseline
    from m2kit.runtime.bench.figures import Benchmark
    from m2kit.runtime.engine import Engine

_OFFICIAL_POSITIONS = 32  # timed with the official sampler's habits


@click.command()
@engine_option
@provider_option
@threads_option
@click.option("--batch", type=COUNT, default=1, help="Images drawn, or coded, at once.")
@click.option(
    "--rounds",
    type=COUNT,
    default=2,
    help="Generations; of a tokenizer alone encodings and decodings, after one to warm up.",
)
@click.option(
    "--image-size",
    callback=size_from_text,
    metavar="H,W",
    help="Size of the pictures that a tokenizer alone codes: height and width, of clips T,H,W.  "
    "[default: that at which the engine was compared, of clips with the model's own frames]",
)
@click.option("--no-baseline", is_flag=True, help="Leave PyTorch out; it takes most of the time.")
@click.option("--compile", "compiled", is_flag=True, help="Also time torch.compile.")
@sampling_options
@click.option("--plot", type=PATH, help="Also draw the stages, as .png.")
@json_option
def bench(
    engine: Path | None,
    provider: str | None,
    threads: int | None,
    batch: int,
    rounds: int,
    image_size: tuple[int, ...] | None,
    no_baseline: bool,
    compiled: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Time an engine stage by stage, against the memory's own limit and PyTorch.

    The limit is the stored bytes of the weights a position needs over the bandwidth measured in
    the same run. The baseline is the same architecture with random weights in eager PyTorch, its
    KV cache written in place; without torch it is left out. Stages are timed for the whole batch.

    Of a tokenizer alone, encoding and decoding are timed for one picture or clip: as multiply-adds
    a second, as share of what the fastest convolution of its levels reaches by itself in the same
    run (with ONNX Runtime on a CPU, where onnx is installed), and against eager PyTorch.
    """
    if plot:
        check_output(plot, ".png")
        require("matplotlib", extra="train", what="--plot")
    path = only_folder(ENGINE, engine)
    opening = {"provider": provider, "threads": threads}
    if read_manifest(path, ENGINE).spec.transformer is None:
        if drawing := given(*options, "compiled", "plot"):
            raise InputError(
                f"this engine holds a tokenizer only, of which {', '.join(drawing)} says nothing"
            )
        bench_tokenizer(
            path,
            opening,
            size=image_size,
            batch=batch,
            rounds=rounds,
            baseline=not no_baseline,
            as_json=as_json,
        )
        return
    if image_size is not None:
        raise InputError("--image-size is for tokenizers alone: this model draws its own size")
    note("drawing in a process of its own, for its memory ...")
    peak = _peak_memory(path, batch, opening | options)
    with stages() as begin:
        found, value = _measure(
            path,
            m2kit.Sampling(**options),
            begin,
            opening=opening,
            batch=batch,
            rounds=rounds,
            compiled=None if no_baseline else compiled,
            peak=peak,
        )
    if not found.steady:
        note(
            f"WARNING: bandwidth was {found.bandwidth_before_gb_s} GB/s before and "
            f"{found.bandwidth_after_gb_s} after, {found.attempts} times over: the machine "
            "is busy, and the share of the limit means little"
        )
    if plot:
        from m2kit.training.bench.plot import benchmark_bars

        benchmark_bars(plot, found, f"{path.name}, {value['precision']}, {value['machine']}")
    print_result(_rows(found, value), as_json, value)


def _measure(
    path: Path,
    sampling: m2kit.Sampling,
    begin: Begin,
    *,
    opening: JsonObject,
    batch: int,
    rounds: int,
    compiled: bool | None,
    peak: int | None,
) -> tuple[Benchmark, JsonObject]:
    """Open and measure: what was found, and the same with its circumstances, as --json prints it.

    `opening` is how the engine is opened; `compiled` is None to leave PyTorch out; `peak` is of
    the drawing process.
    """
    from m2kit.runtime.bench.benchmark import benchmark
    from m2kit.runtime.bench.circumstances import circumstances
    from m2kit.runtime.bench.memory import memory_use

    began = time.perf_counter()
    with m2kit.open_engine(path, **opening) as engine:
        warn_of_quality(path, engine)
        _, resolved = engine.check_draw([0], sampling)
        rows = 2 * batch if resolved.guided else batch
        memory, decoding = memory_use(engine, rows)
        engine.backend.open_steps(rows)
        opened = time.perf_counter() - began - decoding
        cores = engine.backend.threads or opening["threads"] or available_cores()
        baselines = {} if compiled is None else _baselines(engine, cores, compiled)
        found = benchmark(
            engine, sampling, images=batch, rounds=rounds, baselines=baselines, begin=begin
        )
        return found, {
            **circumstances(path, engine),
            "open_seconds": round(opened, 2),
            **found.flat(),
            **to_json(memory),
            "peak_memory_bytes": peak,
        }


def _baselines(engine: Engine, threads: int, compiled: bool) -> dict[str, Baseline]:
    """Eager PyTorch, its best and with the official sampler's habits, where torch is."""
    if find_spec("torch") is None:
        note("torch is not installed: no baseline")
        return {}
    from m2kit.runtime.bench.benchmark import Baseline
    from m2kit.runtime.engine import Engine
    from m2kit.training.bench.eager import EagerBackend

    def baseline(positions: int | None, **how: bool) -> Baseline:
        backend = EagerBackend(engine.spec, threads=threads, **how)
        return Baseline(Engine(engine.spec, backend, defaults=engine.defaults), positions)

    found = {"eager": baseline(None), "official": baseline(_OFFICIAL_POSITIONS, official=True)}
    if compiled:
        try:
            found["compiled"] = baseline(None, compiled=True)
        except Exception as error:  # torch.compile fails in many ways: no compiler is the first
            note(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    return found


def _peak_memory(path: Path, batch: int, options: Mapping[str, Any]) -> int | None:
    """Peak resident memory of `m2kit generate` drawing one batch, in a process of its own."""
    given = []
    for name, item in options.items():
        if item is None or item is False:
            continue
        given.append(f"--{name.replace('_', '-')}")
        if item is not True:
            given.append(",".join(map(str, item)) if isinstance(item, tuple) else str(item))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "m2kit", "generate", "--json", "--class", "0"),
            *("--engine", str(path), "-n", str(batch), "--batch", str(batch)),
            *("-o", f"{folder}/image.png", *given),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="surrogateescape",  # a path may be any
        )
    if done.returncode:
        if done.returncode < 0:
            reason = f"killed by signal {-done.returncode}; lower --batch if memory ran out"
        else:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            reason = reason.removeprefix("error: ")
        raise BackendError(f"generate failed: {reason}")
    peak: int | None = json.loads(done.stdout)["peak_memory_bytes"]
    return peak


def _rows(found: Benchmark, value: JsonObject) -> dict[str, str]:
    """The table: stages, then the figures that matter."""
    rows = {name: str(value[name]) for name in ("engine", "precision", "machine")}
    if found.bandwidth_gb_s:
        rows["bandwidth"] = f"{found.bandwidth_gb_s} GB/s"
    for name, stage in found.stages.items():
        speed = f", {stage.gb_s} GB/s" if stage.gb_s else ""
        rows[name] = f"{stage.median_ms:.2f} ms, p95 {stage.p95_ms:.2f}{speed}"
    if found.limit is not None:
        rows["limit"] = (
            f"{found.limit.milliseconds:.2f} ms a position for "
            f"{size_text(found.limit.weight_bytes)} of weights; {found.limit.share_reached:.0%} "
            "reached"
        )
    rows["outside the backend"] = f"{found.overhead_share:.1%} of a position"
    rows["images"] = (
        f"{found.images_per_second:.3f} a second, {found.image_ms / 1e3:.2f} s each, "
        f"{found.batch} at once"
    )
    for name, other in found.baselines.items():
        rows[f"{name} PyTorch"] = (
            f"{other.image_ms / 1e3:.2f} s, {other.image_speedup} times as long"
        )
    peak, expected = value["peak_memory_bytes"], value["expected_memory_bytes"]
    if peak and expected:
        rows["peak memory"] = (
            f"{size_text(peak)}, {peak / expected:.2f} of weights, caches and the decoder's "
            "activations"
        )
    rows["opens in"] = f"{value['open_seconds']} s"
    return rows
