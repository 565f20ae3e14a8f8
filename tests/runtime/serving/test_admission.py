"""Who is let in and how long, what is refused before a route, and clients that leave."""

import asyncio
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from doubles.until import until

import m2kit
from m2kit.cli import cli

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from doubles.live_server import GENERATIONS, ask, served  # noqa: E402

from m2kit.runtime.serving import application, server  # noqa: E402
from m2kit.runtime.serving.batching import QueueFull  # noqa: E402
from m2kit.runtime.serving.limits import own_hosts  # noqa: E402


def test_an_api_key_is_asked_for_where_there_is_one(digits_engine, tmp_path):
    with served(digits_engine, api_keys=frozenset({"secret", "other"})) as (address, _):
        for key in ("x", "Secret", "secret2", "\u00e4"):
            headers = {"authorization": f"Bearer {key}".encode()}
            answer = httpx.post(address + GENERATIONS, json={"prompt": "1"}, headers=headers)
            assert answer.status_code == 401 and "secret" not in answer.text
        for sent, status in (
            ("Bearer other", 200), ("bearer  other", 200), ("other", 401), ("Basic other", 401),
        ):  # fmt: skip
            answer = httpx.post(
                address + GENERATIONS, json={"prompt": "1"}, headers={"authorization": sent}
            )
            assert answer.status_code == status
        assert httpx.get(address + "/healthz").status_code == 200
        assert httpx.get(address + "/metrics").status_code == 401


def test_a_page_whose_name_leads_here_is_answered_to_with_a_key_alone(digits_engine):
    def status(address, host, **headers):
        parts = urlsplit(address)
        url = f"http://{parts.hostname}:{parts.port}{GENERATIONS}"
        headers = {"host": host.format(parts.port), **headers}
        return httpx.post(url, json={"prompt": "1"}, headers=headers).status_code

    with served(digits_engine, hosts=own_hosts("Pictures.lan")) as (address, _):
        for host in ("127.0.0.1:{}", "LOCALHOST:{}", "localhost", "[::1]:{}", "pictures.lan:80"):
            assert status(address, host) == 200
        for host in (
            "evil.example",
            "evil.example:{}",
            "127.0.0.1.evil.example",
            "[::1",
            "",
            "::1",
        ):
            assert status(address, host) == 421
        answer = httpx.get(address + "/v1/models", headers={"host": "evil.example"})
        assert "expected host 127.0.0.1, [::1], localhost" in answer.json()["error"]["message"]
        assert httpx.get(address + "/healthz", headers={"host": "evil.example"}).status_code == 200
    keys = frozenset({"key"})
    with served(digits_engine, hosts=own_hosts("::1"), api_keys=keys) as (address, _):
        assert status(address, "pictures.example", authorization="Bearer key") == 200
        assert status(address, "pictures.example") == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_answers_to_its_own_address_unless_that_is_all(
    digits_engine, monkeypatch, host
):
    limits = []

    class Ends:
        def __init__(self, service, **_):
            limits.append(service.limits)

        def run(self, _):
            pass

    monkeypatch.setattr(server, "Server", Ends)
    done = CliRunner().invoke(cli, ["serve", str(digits_engine), "--host", host, "--port", "0"])
    assert done.exit_code == 0, done.output
    own = {"127.0.0.1", "localhost", "[::1]"} if host == "127.0.0.1" else set()
    assert limits[0].hosts == own


def test_a_full_queue_answers_429_at_once(digits_engine):
    with served(digits_engine, batch=1, waiting=3) as (address, service):
        drawn = threading.Thread(target=ask, args=(address,), kwargs={"prompt": "1", "n": 20})
        drawn.start()
        until(lambda: service.batcher.in_batch)
        began = time.perf_counter()
        answer = ask(address, prompt="1")
        assert time.perf_counter() - began < 5
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        drawn.join()
        assert ask(address, prompt="1").status_code == 200


def test_too_many_pictures_to_decode_answer_429(digits):
    address, service = digits
    began, held = threading.Event(), threading.Event()
    service.batcher.do(lambda: (began.set(), held.wait()))
    assert began.wait(10)
    tokens = {"tokens": [[[0, 0]] * 4] * 4}
    with pytest.raises(QueueFull):
        while True:
            service.batcher.do(lambda: None)
    try:
        answer = httpx.post(address + "/v1/decode", json=tokens)
    finally:
        held.set()
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert httpx.post(address + "/v1/decode", json=tokens).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_rows_of_a_client_that_leaves_stop(digits_engine, stream):
    with served(digits_engine, batch=2) as (address, service):
        parts = urlsplit(address)
        body = json.dumps({"prompt": "1", "n": 60, "stream": stream}).encode()
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\n"
                b"content-type: application/json\r\ncontent-length: "
                + str(len(body)).encode() + b"\r\n\r\n" + body
            )  # fmt: skip
            until(lambda: service.batcher.in_batch)
        until(lambda: not service.batcher.in_batch and not service.batcher.waiting)
        counts = service.batcher.counts
        assert counts.stopped + counts.pictures == 60 and counts.stopped > 40


def test_a_stream_that_waits_says_so(digits, monkeypatch):
    monkeypatch.setattr(application, "_QUIET_SECONDS", 0.1)
    address, service = digits
    held = threading.Event()
    service.batcher.do(held.wait)
    fields = {"prompt": "1", "stream": True}
    try:
        with httpx.stream("POST", address + GENERATIONS, json=fields, timeout=10) as answer:
            assert answer.headers["x-accel-buffering"] == "no"
            lines = answer.iter_lines()
            assert [next(lines), next(lines)] == [": waiting", ""]
            held.set()
            assert "event: image_generation.completed" in list(lines)
    finally:
        held.set()


def test_a_stream_whose_client_left_before_its_first_byte_is_not_drawn(digits):
    _, service = digits
    body = json.dumps({"prompt": "1", "n": 60, "stream": True}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(_):
        await asyncio.Event().wait()

    scope = {
        "type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "path": GENERATIONS,
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    }  # fmt: skip
    began, held = threading.Event(), threading.Event()
    service.batcher.do(lambda: (began.set(), held.wait()))
    assert began.wait(10)
    try:
        asyncio.run(service.application()(scope, receive, send))
        assert service.batcher.waiting == 0
    finally:
        held.set()


def test_slow_clients_are_let_go(digits_engine, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with served(digits_engine, body_seconds=0.3) as (address, _):
        parts = urlsplit(address)
        for sent, answered in (
            (b"POST /v1/images/generations HTTP/1.1\r\nhost:", b""),
            (b"", b""),
            (b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n"
             b"content-type: application/json\r\n\r\n{", b"HTTP/1.1 408"),
        ):  # fmt: skip
            with socket.create_connection((parts.hostname, parts.port), timeout=20) as client:
                client.sendall(sent)
                assert client.recv(12) == answered
        assert ask(address, prompt="1").status_code == 200


def test_no_answer_names_a_path_or_holds_a_traceback(digits_engine, monkeypatch, caplog, capsys):
    with served(digits_engine) as (address, service):

        def broken(*_, **__):
            raise m2kit.BackendError(f"{digits_engine}: damaged")

        monkeypatch.setattr(service.engine, "generate", broken)
        answer = ask(address, prompt="1")
        assert answer.status_code == 500
        assert "the server's log says how" in answer.text and str(digits_engine) not in answer.text
        monkeypatch.setattr(service, "size", None)
        answer = ask(address, prompt="1")
        assert answer.status_code == 500 and "Traceback" not in answer.text
    logged = caplog.text + capsys.readouterr().err
    assert logged.count("damaged") == 1 and logged.count("Traceback") == 1


def test_keys_are_read_and_checked(tmp_path, digits_engine):
    for text, words in (
        ("", "found 0"),
        ("two words", "without spaces"),
        ("key\n\u00e4", "found another in line 2"),
        ("key\n\n" + "x" * 201, "found another in line 3"),
    ):
        (tmp_path / "keys").write_text(text, encoding="utf-8")
        done = CliRunner().invoke(
            cli, ["serve", str(digits_engine), "--api-key-file", str(tmp_path / "keys")]
        )
        assert done.exit_code == 1 and words in done.stderr, done.output


@pytest.mark.parametrize("host", ["", "uml\u00e4ut..x", "a" * 70])
def test_what_is_no_host_is_one_line(tmp_path, host):
    done = CliRunner().invoke(cli, ["serve", str(tmp_path), "--host", host, "--port", "0"])
    assert done.exit_code == 1 and "host" in done.stderr.strip().splitlines()[-1], done.output


def test_what_is_no_http_is_an_error_of_the_api(digits):
    address, _ = digits
    place = urlsplit(address)
    for head, words in (
        (b"GET / HTTP/1.1\r\n\r\n", b"expected HTTP/1.1"),  # without a host
        (b"POST /v1/decode HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", b"HTTP"),
    ):
        with socket.create_connection((place.hostname, place.port), 20) as client:
            client.sendall(head)
            answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        told, _, body = answer.partition(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 400") and words in body
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_body_that_says_it_is_too_large_is_not_waited_for(digits):
    address, _ = digits
    place, began = urlsplit(address), time.monotonic()
    with socket.create_connection((place.hostname, place.port), 20) as client:
        client.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 99999999999999\r\n\r\n"
        )
        assert client.recv(12) == b"HTTP/1.1 413"
    assert time.monotonic() - began < 10


def test_a_port_that_is_taken_is_one_line_before_the_engine_is_opened(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(cli, ["serve", str(tmp_path), "--port", str(port)])
    assert done.exit_code == 1
    assert f"cannot listen at 127.0.0.1, port {port}" in done.stderr
