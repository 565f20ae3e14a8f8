"""What clients, signals and disks do to a server."""

import concurrent.futures
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from doubles.live_server import served  # noqa: E402
from doubles.until import until  # noqa: E402

GENERATIONS = "/v1/images/generations"
FIELDS = (
    "prompt", "n", "size", "seed", "response_format", "output_format", "stream", "partial_images",
    "guidance", "temperature", "top_k", "top_p", "greedy", "first_image", "model", "tokens", "",
)  # fmt: skip


def odd_value(random, depth=0):
    """Any JSON, of which some is what a field expects."""
    kinds = [
        lambda: random.choice(
            ["3", "auto", "32x32", "png", "b64_json", "", "\x00", "\ud83d", "9" * 50]
        ),
        lambda: random.choice([0, 1, 2, 3, -1, 2**31, 2**63, 2**64, 10**30]),
        lambda: random.choice([0.5, -0.0, 1e308, float("nan"), float("inf"), 1e-320]),
        lambda: random.choice([True, False, None]),
        lambda: [odd_value(random, depth + 1) for _ in range(random.randrange(4))],
        lambda: {random.choice(FIELDS): odd_value(random, depth + 1)},
    ]
    return random.choice(kinds[: 4 if depth > 3 else 6])()


def odd_request(random):
    """(method, path, headers, body)."""
    path = random.choice(
        [GENERATIONS, GENERATIONS, "/v1/tokens", "/v1/decode", "/v1/classes?q=%00", "/v1/models",
         "/healthz", "/metrics", "/", "/v1/tokens?resize=-1", "/v1/decode?x", "//", "/v1/"]
    )  # fmt: skip
    fields = {random.choice(FIELDS): odd_value(random) for _ in range(random.randrange(5))}
    if random.random() < 0.7:
        fields["prompt"] = "3"
    body = json.dumps(fields).encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        place = random.randrange(len(body))
        body = body[:place] + random.randbytes(random.randrange(9)) + body[place + 1 :]
    kind = random.choice(
        ["application/json"] * 5 + ["text/plain", "image/png", "", "application/\xff"]
    )
    method = random.choice(["POST"] * 6 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
    return method, path, {"content-type": kind.encode("latin-1")}, body


def test_300_odd_requests_are_answered_and_none_by_a_failure(digits, caplog):
    address, service = digits
    chance = random.Random(17)
    statuses = set()
    with httpx.Client(timeout=30) as client:
        for number in range(300):
            method, path, headers, body = odd_request(chance)
            answer = client.request(method, address + path, headers=headers, content=body)
            statuses.add(answer.status_code)
            told = (number, method, path, body[:200], answer.status_code, answer.text[:300])
            assert answer.status_code < 500, told
            assert "Traceback" not in answer.text and "/tmp" not in answer.text, told
            if answer.status_code >= 400 and method != "HEAD":
                error = answer.json()["error"]
                assert "\n" not in error["message"] and len(error["message"]) < 500, told
    assert {200, 400, 404, 405, 415} <= statuses
    assert service.batcher.alive and "Traceback" not in caplog.text
    answer = httpx.post(address + GENERATIONS, json={"prompt": "1"}, timeout=30)
    assert answer.status_code == 200


def test_a_deleted_engine_folder_is_served_on(digits_engine, tmp_path):
    shutil.copytree(digits_engine, tmp_path / "copy.engine")
    with served(tmp_path / "copy.engine") as (address, _):
        shutil.rmtree(tmp_path / "copy.engine")
        for fields in ({"prompt": "1"}, {"prompt": "2", "n": 3}):
            answer = httpx.post(address + GENERATIONS, json=fields, timeout=30)
            assert answer.status_code == 200


@pytest.mark.parametrize("drain", [30, 0])
def test_sigterm_under_load_finishes_or_refuses_what_was_accepted(digits_engine, drain):
    command = [sys.executable, "-m", "m2kit", "serve", str(digits_engine), "--port", "0",
               "--batch", "2", "--drain", str(drain)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        address = re.search(r"http://[\d.:]+", line).group()

        def ask(place):
            try:
                fields = {"prompt": str(place % 10), "n": 20, "stream": place % 2 == 0}
                answer = httpx.post(address + GENERATIONS, json=fields, timeout=60)
            except httpx.TransportError as error:
                return type(error).__name__
            return answer.status_code, "error" in answer.text

        def drawing():
            text = httpx.get(address + "/metrics", timeout=30).text
            return float(re.search(r"^m2kit_pictures_total ([\d.]+)", text, re.MULTILINE)[1]) > 4

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, place) for place in range(8)]
            until(drawing)
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in asked]
        assert process.wait(60) == 143
        seconds, rest = time.perf_counter() - began, process.stderr.read()
    assert "Traceback" not in rest, rest
    if drain:
        assert answers == [(200, False)] * 8, (answers, rest)
    else:
        assert seconds < 15
        ended = {(200, True), (503, True), "RemoteProtocolError", "ReadError"}
        assert set(answers) <= ended | {(200, False)}, (answers, rest)
