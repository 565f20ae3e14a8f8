"""What clients, signals and disks do to a server."""

import concurrent.futures
import contextlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from doubles.live_server import GENERATIONS, served  # noqa: E402
from doubles.until import until  # noqa: E402

from m2kit.runtime.serving import server  # noqa: E402

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


def client_of(address):
    """A connection of which little fits into what the kernel keeps."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect((urlsplit(address).hostname, urlsplit(address).port))
    return client


def to_the_end(client):
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            read += piece
    return read


@pytest.mark.parametrize("more", [b"", b"x"])
def test_a_client_that_keeps_the_rest_of_an_answered_request_is_let_go(
    digits_engine, monkeypatch, more
):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "_KEPT_SECONDS", 1)
    keys = frozenset({"key"})
    with served(digits_engine, api_keys=keys) as (address, _), client_of(address) as client:
        client.sendall(b"POST /v1/decode HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 401"
        client.sendall(more)
        assert b"API key" in to_the_end(client)


@pytest.mark.parametrize("kept", ["close", "keep-alive"])
def test_a_client_that_does_not_read_its_answer_is_let_go(digits_engine, monkeypatch, kept):
    def listen_with_little_kept(*place):
        listening = server.listen(*place)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listening

    monkeypatch.setattr("doubles.live_server.listen", listen_with_little_kept)
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.3)
    with served(digits_engine) as (address, _), client_of(address) as client:
        client.sendall(f"GET / HTTP/1.1\r\nhost: x\r\nconnection: {kept}\r\n\r\n".encode())
        time.sleep(1)
        assert len(to_the_end(client)) < len(httpx.get(address).content) / 2


def heed_signals():
    """What ran the tests may have it that its children ignore these, as nohup does."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def process_of(engine, *options):
    """`m2kit serve` and its address."""
    command = [sys.executable, "-m", "m2kit", "serve", str(engine), "--port", "0", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    ) as process:
        try:
            yield process, re.search(r"http://[\d.:]+", process.stderr.readline()).group()
        finally:
            process.kill()


@contextlib.contextmanager
def load(address, pictures):
    """Eight clients that all ask for so many pictures, as futures, when the server has taken all:
    of each (status, whether its answer has an error), or the name of an error of its connection."""

    def ask(place):
        try:
            fields = {"prompt": str(place), "n": pictures, "stream": place % 2 == 0}
            answer = httpx.post(address + GENERATIONS, json=fields, timeout=60)
        except httpx.TransportError as error:
            return type(error).__name__
        return answer.status_code, "error" in answer.text

    def taken():
        text = httpx.get(address + "/metrics", timeout=30).text
        names = "waiting_pictures|batch_pictures|pictures_total|stopped_pictures_total"
        return sum(map(int, re.findall(rf"^m2kit_(?:{names}) (\d+)$", text, re.MULTILINE)))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, place) for place in range(8)]
        until(lambda: taken() == 8 * pictures)
        yield asked


@pytest.mark.parametrize(
    ("number", "drain", "status"),
    [
        (signal.SIGTERM, 30, 143),
        (signal.SIGTERM, 0, 143),
        (signal.SIGHUP, 30, 143),
        (signal.SIGINT, 30, 130),
    ],
)
def test_a_signal_under_load_finishes_or_refuses_what_was_accepted(
    digits_engine, number, drain, status
):
    with process_of(digits_engine, "--batch", "2", "--drain", str(drain)) as (process, address):
        with load(address, 20) as asked:
            began = time.perf_counter()
            process.send_signal(number)
            answers = [one.result() for one in asked]
        assert process.wait(60) == status
        seconds, rest = time.perf_counter() - began, process.stderr.read()
    assert "Traceback" not in rest and "error" not in rest
    assert f"what was accepted has {drain} s" in rest, rest
    if drain:
        assert answers == [(200, False)] * 8, (answers, rest)
    else:
        assert seconds < 15
        assert set(answers) <= {(200, True), (503, True), (200, False)}, (answers, rest)
        assert {(200, True), (503, True)} <= set(answers), (answers, rest)


def test_a_second_ctrl_c_ends_it_at_once(digits_engine):
    options = ("--batch", "1", "--drain", "300", "--waiting", "1000")
    with process_of(digits_engine, *options) as (process, address):
        with load(address, 64) as asked:
            process.send_signal(signal.SIGINT)
            assert "Ctrl-C once more" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            answers = [one.result() for one in asked]
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
    assert answers.count((200, False)) < 8  # all of it takes some ten seconds
