"""What a server bears: many clients for a minute, beside `m2kit generate` in the same run.

    python examples/serving/load.py digits.engine
    python examples/serving/load.py ar_b.engine --batch 4 --seconds 120

Starts `m2kit serve` on a port of its own. Positions a second, summed over pictures, are by the
server's own count, from the first request to the end, which comes after three full batches at the
earliest. Beside them, before and after, stand `m2kit generate` into a folder, which writes the same
PNGs, and drawing alone, both in batches of the same size. Clients ask by a bare socket, since they
share the cores. Memory is the server's resident set. At last the queue is filled, and 429 is timed.
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

import m2kit
from m2kit.runtime.drawing import draw_images

GENERATIONS = "/v1/images/generations"
BATCHES = 3  # at least


def written(options: list[str], batch: int, seconds: float) -> float:
    """Pictures a second of `m2kit generate` into a folder, for about so long."""
    count, found = BATCHES * batch, 0.0
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            given = [*options, "--class", "0", "-n", str(count), "--batch", str(batch)]
            command = [sys.executable, "-m", "m2kit", "generate", "--engine", *given]
            command += ["-o", f"{folder}/pictures", "--json"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout)["images_per_second"]
        if count >= found * seconds:
            break
        count = round(found * seconds)
    return found


def drawn(engine: Path, provider: str, threads: int | None, batch: int, seconds: float) -> float:
    """Pictures a second of drawing alone, for about so long."""
    with m2kit.open_engine(engine, provider=provider, threads=threads) as opened:
        next(iter(draw_images(opened, [0], batch, batch=batch)))  # opens its graphs
        began, count = time.perf_counter(), 0
        while count < BATCHES * batch or time.perf_counter() - began < seconds:
            for done in draw_images(opened, [0], batch, batch=batch):
                count += len(done.numbers)
        return count / (time.perf_counter() - began)


def metrics(address: str) -> dict[str, float]:
    """The server's counts."""
    text = httpx.get(address + "/metrics", timeout=60).text
    return {n: float(v) for n, v in re.findall(r"^(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}


def resident_mb(process: int) -> float:
    """Of a process."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1e3


async def client(address: str, number: int, latencies: list[float]) -> None:
    """Asks for one picture after the other, each with settings of its own."""
    chance = np.random.default_rng(number)
    host, _, port = address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    while True:
        body = json.dumps({
            "prompt": "0",
            "seed": int(chance.integers(2**32)),
            "temperature": float(chance.uniform(0.8, 1.2)),
        }).encode()  # fmt: skip
        head = (
            f"POST {GENERATIONS} HTTP/1.1\r\nhost: {host}:{port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        writer.write(head.encode() + body)
        told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await reader.readexactly(int(re.search(r"content-length: (\d+)", told)[1]))
        if not told.startswith("http/1.1 200"):
            raise RuntimeError(answer.decode())
        latencies.append(time.monotonic() - began)


async def loaded(
    address: str, clients: int, seconds: float, process: int
) -> tuple[dict[str, float], float, list[float], float, float]:
    """What the server counted meanwhile and in how many seconds; latencies of its answers; its
    memory after a fifth of the time and at the end. Clients then leave."""
    latencies: list[float] = []
    first, began = metrics(address), time.monotonic()
    running = [asyncio.create_task(client(address, n, latencies)) for n in range(clients)]
    early = 0.0
    while True:
        await asyncio.sleep(min(1.0, seconds / 20))
        passed = time.monotonic() - began
        if not early and passed >= seconds / 5:
            early = resident_mb(process)
        for task in running:
            if task.done():
                task.result()
        if passed >= seconds:
            last = await asyncio.to_thread(metrics, address)
            passed = time.monotonic() - began
            if last["m2kit_batches_total"] - first["m2kit_batches_total"] > BATCHES:
                break
    late = resident_mb(process)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return {name: last[name] - first[name] for name in last}, passed, latencies, early, late


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
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default: all cores")
    given = parser.parse_args()
    options = [str(given.engine), "--provider", given.provider]
    options += ["--threads", str(given.threads)] if given.threads else []
    alone = given.engine, given.provider, given.threads, given.batch, given.seconds / 4
    files = [written(options, given.batch, given.seconds / 4)]
    bare = [drawn(*alone)]
    command = [sys.executable, "-m", "m2kit", "serve", *options, "--port", "0"]
    command += ["--batch", str(given.batch), "--waiting", str(2 * given.clients)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        lines = iter(server.stderr.readline, "")
        address = next(found[0] for found in (re.findall(r"http://\S+", x) for x in lines) if found)
        counted, seconds, latencies, early, late = asyncio.run(
            loaded(address, given.clients, given.seconds, server.pid)
        )
        full = asyncio.run(refused(address))
        server.send_signal(signal.SIGTERM)
        server.wait(300)
    files.append(written(options, given.batch, given.seconds / 4))
    bare.append(drawn(*alone))
    with m2kit.open_engine(given.engine) as engine:
        positions = engine.transformer.positions
    served = counted["m2kit_positions_total"] / seconds
    for name, rates in (("m2kit generate into a folder", files), ("drawing alone", bare)):
        before, after = (positions * rate for rate in rates)
        print(
            f"{name}: {before:.0f} and {after:.0f} positions/s in batches of {given.batch}; "
            f"the server {2 * served / (before + after):.2f} of that"
        )
    batches = counted["m2kit_batches_total"]
    print(
        f"m2kit serve: {served:.0f} positions/s in {seconds:.0f} s, {batches:.0f} batches of "
        f"{counted['m2kit_batch_pictures_total'] / batches:.2f} pictures on average"
    )
    p50, p95 = np.percentile(latencies, (50, 95))
    print(f"{len(latencies)} answers to {given.clients} clients: p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"memory: {early:.0f} MB after a fifth of the time, {late:.0f} MB at the end")
    shown = ", ".join(f"{1000 * np.percentile(full, q):.0f} ms (p{q})" for q in (50, 95, 100))
    print(f"429 of a full queue: {len(full)} answers, {shown}")


main()
