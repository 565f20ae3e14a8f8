"""What a server bears: many clients for a minute, beside `m2kit generate` in the same run.

    python examples/serving/load.py digits.engine
    python examples/serving/load.py ar_b.engine --seconds 180

Starts `m2kit serve` on a port of its own. Positions a second, summed over pictures, are by the
server's own count, over all the time and over that in which it drew batches; the measure beside
them is drawing batches of the same size in one process, before and after. Memory is the server's
resident set. At last the queue is filled, and 429 is timed.
"""

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

import m2kit
from m2kit.runtime.drawing import draw_images

GENERATIONS = "/v1/images/generations"


def generated(engine: m2kit.Engine, batch: int, seconds: float) -> float:
    """Positions a second of drawing batches, for so long, three batches at least."""
    began, drawn = time.perf_counter(), 0
    while drawn < 3 * batch or time.perf_counter() - began < seconds:
        for done in draw_images(engine, [0], batch, batch=batch):
            drawn += len(done.numbers)
    return drawn * engine.transformer.positions / (time.perf_counter() - began)


def metrics(address: str) -> dict[str, float]:
    """The server's counts."""
    text = httpx.get(address + "/metrics", timeout=60).text
    return {n: float(v) for n, v in re.findall(r"^(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}


def resident_mb(process: int) -> float:
    """Of a process."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1e3


async def client(address: str, number: int, until: float, latencies: list[float]) -> None:
    """Asks for one picture after the other, each with settings of its own."""
    chance = np.random.default_rng(number)
    async with httpx.AsyncClient(timeout=1200) as http:
        while time.monotonic() < until:
            fields = {
                "prompt": "0",
                "seed": int(chance.integers(2**32)),
                "temperature": float(chance.uniform(0.8, 1.2)),
            }
            began = time.monotonic()
            answer = await http.post(address + GENERATIONS, json=fields)
            answer.raise_for_status()
            latencies.append(time.monotonic() - began)


async def loaded(
    address: str, clients: int, seconds: float, process: int
) -> tuple[list[float], float, float]:
    """Latencies of all answers; the server's memory after a fifth of the time and at the end."""
    latencies: list[float] = []
    until = time.monotonic() + seconds
    running = [asyncio.create_task(client(address, n, until, latencies)) for n in range(clients)]
    await asyncio.sleep(seconds / 5)
    early = resident_mb(process)
    await asyncio.gather(*running)
    return latencies, early, resident_mb(process)


async def refused(address: str, seconds: float = 5.0) -> list[float]:
    """Seconds in which a full queue answered 429: eight clients ask for 64 pictures again and
    again, which is more than may wait."""
    found: list[float] = []
    until = time.monotonic() + seconds

    async def ask(http: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            answer = await http.post(address + GENERATIONS, json={"prompt": "0", "n": 64})
            if answer.status_code == 429:
                found.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

    async with httpx.AsyncClient(timeout=1200) as http:
        asking = [asyncio.create_task(ask(http)) for _ in range(8)]
        await asyncio.sleep(seconds)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    waiting = 2 * given.clients
    with m2kit.open_engine(given.engine) as engine:
        generated(engine, given.batch, 0)  # opens its graphs
        before = generated(engine, given.batch, given.seconds / 4)
    command = [
        *(sys.executable, "-m", "m2kit", "serve", str(given.engine), "--port", "0"),
        *("--batch", str(given.batch), "--waiting", str(waiting)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        lines = iter(server.stderr.readline, "")
        address = next(found[0] for found in (re.findall(r"http://\S+", x) for x in lines) if found)
        first, began = metrics(address), time.monotonic()
        latencies, early, late = asyncio.run(
            loaded(address, given.clients, given.seconds, server.pid)
        )
        last, seconds = metrics(address), time.monotonic() - began
        full = asyncio.run(refused(address))
        server.send_signal(signal.SIGTERM)
        server.wait(120)
    with m2kit.open_engine(given.engine) as engine:
        generated(engine, given.batch, 0)
        after = generated(engine, given.batch, given.seconds / 4)
    counted = {name: last[name] - first[name] for name in last}
    positions, batches = counted["m2kit_positions_total"], counted["m2kit_batches_total"]
    drawing, own = positions / counted["m2kit_batch_seconds_total"], (before + after) / 2
    p50, p95 = np.percentile(latencies, (50, 95))
    print(f"generate: {before:.0f} and {after:.0f} positions/s in batches of {given.batch}")
    print(
        f"serve: {positions / seconds:.0f} positions/s ({positions / seconds / own:.2f} of that), "
        f"{drawing:.0f} while drawing ({drawing / own:.2f}); {batches:.0f} batches of "
        f"{counted['m2kit_batch_pictures_total'] / batches:.2f} pictures on average"
    )
    print(
        f"{len(latencies)} answers to {given.clients} clients in {seconds:.0f} s: "
        f"p50 {p50:.2f} s, p95 {p95:.2f} s"
    )
    print(f"memory: {early:.0f} MB after a fifth of the time, {late:.0f} MB at the end")
    shown = ", ".join(f"{1000 * np.percentile(full, q):.0f} ms (p{q})" for q in (50, 95, 100))
    print(f"429 of a full queue: {len(full)} answers, {shown}")


main()
