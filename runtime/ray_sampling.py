"""Large sets on a Ray cluster: batches of image numbers go out to workers, and their pixels come
back in order, through Ray Data. What is written, and how, is sample_set.py's, as on one machine.

A worker is an actor that opens the engine once. It reserves a part of a CPU, as two whole ones on a
machine of two would leave none for what Ray itself does; its threads are the cores of its node,
divided among the workers there. A batch is a task of its own: a worker that dies costs what it had
begun, which Ray gives to another one, or to it when it is there again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m2kit.errors import BackendError, M2KitError
from m2kit.host import available_cores
from m2kit.progress import Begin, silent
from m2kit.records import to_json
from m2kit.runtime.backend import CUDA
from m2kit.runtime.drawing import draw_numbers, notes_of_drawing
from m2kit.runtime.engine import Engine
from m2kit.runtime.engine_copies import EngineSource, engine_here, source_of
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.opening import open_engine
from m2kit.runtime.sample_set import SampleSet, SetFolder, keep_parts
from m2kit.sampling import Sampling

LOCAL, AUTO = "local", "auto"  # addresses: one that is started here, the one of this machine
_ANSWER_SECONDS = 10  # in which an address must take a connection
_MOST_CPU = 0.5  # of a worker's reservation
_AT_ONCE = 4096  # batches that Ray Data is told of: what it knows of each is in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who draws, and how each opens the engine.

    Attributes:
        count: How many.
        source: The engine.
        node: The id of the node that has it.
        gpus: Of each.
        cpus: That each reserves.
        share: Among how many a node's cores are divided; None where the host does not compute.
        threads: Of each, in place of its share.
        provider: Of ONNX Runtime.
    """

    count: int
    source: EngineSource
    node: str
    gpus: int
    cpus: float
    share: int | None
    threads: int | None
    provider: str | None


@contextlib.contextmanager
def workers_at(
    address: str,
    count: int,
    path: Path,
    engine: Engine,
    *,
    threads: int | None = None,
    provider: str | None = None,
) -> Iterator[Workers]:
    """Workers on a cluster, which is left at the end, and ends if it was started here. Nothing that
    is printed to stdout until then is shown.

    Args:
        address: HOST:PORT, "auto" or "local".
        count: How many.
        path: The engine's folder.
        engine: Opened from it; what it runs on is asked for.
        threads: Of each worker; by default the cores of its node are divided.
        provider: That the engine was opened with.

    Raises:
        BackendError: No such cluster, or it has not what the workers need.
    """
    assert engine.info is not None
    gpus = int(engine.info.has_plans or provider == CUDA)
    on_host = engine.backend.threads is not None
    source = source_of(path, engine.info)
    # A thread of Ray's prints to stdout, as when a worker dies, and cannot be told to be silent.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            _join(address)
            cpus, share = _division(count, gpus)
            yield Workers(
                count=count,
                source=source,
                node=ray.get_runtime_context().get_node_id(),
                gpus=gpus,
                cpus=cpus,
                share=share if on_host else None,
                threads=threads,
                provider=provider,
            )
        finally:
            ray.shutdown()


def draw_on(
    workers: Workers,
    found: SetFolder,
    positions: int,
    shard: tuple[int, int] = (0, 1),
    begin: Begin = silent,
    told: dict[str, int] | None = None,
) -> Iterator[int]:
    """Draw what a folder lacks of a set, as `draw_parts` does, with the same bytes.

    Args:
        workers: Who draws.
        found: The set, and what is there of it.
        positions: Of an image.
        shard: As for `draw_parts`.
        begin: Likewise.
        told: Is given the threads of a worker, by node.

    Yields:
        The number of images of a part, when its file is there.

    Raises:
        BackendError: A worker fails.
        FolderError: A file cannot be written.
    """
    own = found.lacking(shard)
    advance = begin("drawing", found.images_of(own) * positions)

    def pixels() -> Iterator[tuple[npt.NDArray[np.uint8], str]]:
        batches = (
            {"part": part, "first": first}
            for part in own
            for first in range(0, found.images_of([part]), found.set.batch)
        )
        while some := list(islice(batches, _AT_ONCE)):
            with contextlib.closing(_rows(workers, found.set, some)) as rows:
                for row in rows:
                    if row["error"]:
                        raise BackendError(f"a worker on {row['node']}: {row['error']}")
                    if told is not None and row["threads"]:
                        told[row["node"]] = row["threads"]
                    images = np.frombuffer(row["pixels"], np.uint8)
                    images = images.reshape(-1, *found.set.image_size, 3)
                    advance(len(images) * positions)
                    yield images, row["device"]

    return keep_parts(found, shard, pixels())


def _rows(
    workers: Workers, whole: SampleSet, batches: list[dict[str, int]]
) -> Generator[Any, None, None]:
    """What workers return for each batch, in order. Ray Data spreads them over nodes, and begins
    those that die again, with what they had in hand."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    rows = ray.data.from_items(batches, override_num_blocks=len(batches)).map_batches(
        Worker,
        fn_constructor_args=(workers, whole),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=2),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    try:
        # without threads that fetch ahead: where one is at work when Ray is left, Ray ends the
        # process without a word
        for block in rows.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            yield from block.to_pylist()
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"Ray gave up: {lines[0]} {lines[-1]}") from error


class Worker:
    """Draws batches of a set; Ray Data makes an actor of it."""

    def __init__(self, workers: Workers, whole: SampleSet) -> None:
        """Note what to do; the first batch opens the engine, and can tell what is wrong with it."""
        self._workers, self._set = workers, whole
        self._engine: Engine | None = None

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """One batch, by `part` and `first` image in it: its pixels as bytes, and who drew them."""
        node = ray.util.get_node_ip_address()
        told = {"pixels": b"", "device": "", "threads": 0, "node": node, "error": ""}
        try:
            engine = self._engine = self._engine or self._opened()
            pixels = self._drawn(engine, int(batch["part"][0]), int(batch["first"][0]))
        except (M2KitError, OSError, MemoryError) as error:
            told["error"] = str(error) or type(error).__name__
        else:
            told["pixels"], told["device"] = pixels.tobytes(), engine.backend.device
            told["threads"] = engine.backend.threads or 0
        return {name: [value] for name, value in told.items()}

    def _opened(self) -> Engine:
        workers = self._workers
        path = engine_here(workers.source, lambda *which: _read_there(workers, *which))
        engine = open_engine(path, threads=_threads(workers), provider=workers.provider)
        notes = notes_of_drawing(engine, Sampling(**to_json(self._set.sampling)))
        if notes["software"] != self._set.software:
            raise BackendError(
                f"expected {self._set.software}, as where the command runs, found "
                f"{notes['software']}; install the same on every node"
            )
        return engine

    def _drawn(self, engine: Engine, part: int, first: int) -> npt.NDArray[np.uint8]:
        numbers = self._set.numbers(part)[first : first + self._set.batch]
        sampling = Sampling(**to_json(self._set.sampling))
        batches = draw_numbers(engine, numbers, len(numbers), sampling, batch=self._set.batch)
        return np.concatenate([uint8_from_images(b.images, self._set.uint8) for b in batches])


def _threads(workers: Workers) -> int | None:
    """Of ONNX Runtime, on this node."""
    if workers.share is None:
        return None
    return workers.threads or max(1, available_cores() // workers.share)


def _read_there(workers: Workers, name: str, offset: int, count: int) -> bytes:
    """A part of an engine's file, by way of the node that has it."""
    there = NodeAffinitySchedulingStrategy(workers.node, soft=False)
    read = ray.remote(_read).options(num_cpus=0, scheduling_strategy=there)
    chunk: bytes = ray.get(read.remote(workers.source.path, name, offset, count))
    return chunk


def _read(folder: str, name: str, offset: int, count: int) -> bytes:
    with (Path(folder) / name).open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _join(address: str) -> None:
    """Connect to a cluster; what Ray says of itself is not printed, nor sent to its makers."""
    if address.startswith("ray://"):
        raise BackendError(
            f"{address} is Ray's client, which Ray Data does not work over; run the command on a "
            f"node of the cluster, with {AUTO}",
            option="--ray",
        )
    if address not in (LOCAL, AUTO):
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray has no arguments for these two
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"no Ray cluster at {address!r:.80}: {first:.300}; start one with `ray start --head`, "
            f"or give {LOCAL}",
            option="--ray",
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _check_answers(address: str) -> None:
    """That something listens at HOST:PORT, for which Ray itself waits without end."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BackendError(
            f"no Ray cluster at {address!r:.80}, expected HOST:PORT ({error}); start one with "
            f"`ray start --head`, or give {LOCAL}",
            option="--ray",
        ) from error


def _division(count: int, gpus: int) -> tuple[float, int]:
    """CPUs that each of some workers reserves, and how many share a node."""
    kind = "GPU" if gpus else "CPU"
    able = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get(kind)]
    if not able or (gpus and sum(node["GPU"] for node in able) < count):
        raise BackendError(
            f"expected a cluster with {count if gpus else 'some'} {kind}s, of which each worker "
            f"takes {'one' if gpus else 'a part'}, found {sum(n[kind] for n in able):g}",
            option="--workers",
        )
    cpus = sum(node.get("CPU", 0) for node in able)
    return int(min(_MOST_CPU, cpus / (2 * count)) * 10_000) / 10_000, -(-count // len(able))
