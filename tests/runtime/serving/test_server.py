"""The routes as clients see them."""

import base64
import hashlib
import io
import re
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner
from doubles.until import until
from PIL import Image

import m2kit
from m2kit.cli import cli
from m2kit.runtime.images import uint8_from_images

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from doubles.live_server import GENERATIONS, ask  # noqa: E402

from m2kit.runtime.serving import application  # noqa: E402


def pixels_of(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def own(engine, class_id, count, **options):
    """What `m2kit generate` draws."""
    numbers = [class_id * 2**32 + i for i in range(count)]
    tokens = engine.sample([class_id] * count, m2kit.Sampling(**options), image_numbers=numbers)
    return uint8_from_images(engine.decode(tokens))


def tokens_of(address, content, query="", kind="image/png"):
    headers = {"content-type": kind} if kind else {}
    return httpx.post(f"{address}/v1/tokens{query}", content=content, headers=headers, timeout=60)


def as_file(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def engine(digits_engine):
    with m2kit.open_engine(digits_engine) as engine:
        yield engine


@pytest.fixture
def client(digits):
    """OpenAI's, which refuses what it does not know."""
    openai = pytest.importorskip("openai")
    address, _ = digits
    with openai.OpenAI(
        base_url=address + "/v1", api_key="none", _strict_response_validation=True
    ) as client:
        yield client


def test_the_openai_client_draws_what_generate_draws(client, digits_engine, tmp_path):
    found = client.images.generate(prompt="3", n=2, extra_body={"seed": 7})
    assert (found.size, found.output_format, len(found.data)) == ("32x32", "png", 2)
    done = CliRunner().invoke(
        cli, ["generate", "--engine", str(digits_engine), "--class", "3", "-n", "2", "--seed", "7",
              "-o", str(tmp_path / "drawn")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for place, picture in enumerate(found.data):
        file = tmp_path / "drawn" / f"00003_{place:06d}.png"
        assert base64.b64decode(picture.b64_json) == file.read_bytes()
    assert client.models.list().data[0].id == "digits"


def test_the_openai_client_streams_partial_pictures_in_order(client, engine):
    events = list(
        client.images.generate(
            prompt="5",
            n=2,
            stream=True,
            partial_images=3,
            extra_body={"seed": 2**64 - 1, "guidance": 3},
        )
    )
    for place in range(2):
        mine = [event for event in events if event.index == place]
        assert [getattr(e, "partial_image_index", None) for e in mine] == [0, 1, 2, None]
        assert [e.type.rpartition(".")[2] for e in mine] == ["partial_image"] * 3 + ["completed"]
        whole = pixels_of(mine[-1].b64_json)
        np.testing.assert_array_equal(whole, own(engine, 5, 2, seed=2**64 - 1, guidance=3.0)[place])
        errors = [np.abs(pixels_of(e.b64_json).astype(int) - whole).mean() for e in mine[:3]]
        assert errors[0] > errors[2] > 0
        assert mine[-1].usage.output_tokens == 16


def test_eight_requests_share_batches_and_each_has_its_own(digits, engine):
    address, service = digits
    before = service.batcher.counts.batches
    requests = [
        {"prompt": str(i), "seed": i, "guidance": 1 + i % 3, "top_k": i, "temperature": 1 + i / 8}
        for i in range(7)
    ] + [{"prompt": "7", "greedy": True, "top_p": 0.9}]
    answers = [None] * 8

    def one(place):
        answers[place] = ask(address, **requests[place]).json()

    threads = [threading.Thread(target=one, args=(place,)) for place in range(8)]
    held = threading.Event()
    service.batcher.do(held.wait)  # until all are there
    for thread in threads:
        thread.start()
    until(lambda: service.batcher.waiting == 8)
    held.set()
    for thread in threads:
        thread.join()
    for request, answer in zip(requests, answers, strict=True):
        options = {k: v for k, v in request.items() if k != "prompt"}
        expected = own(engine, int(request["prompt"]), 1, **options)[0]
        np.testing.assert_array_equal(pixels_of(answer["data"][0]["b64_json"]), expected)
    assert service.batcher.counts.batches - before == 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_are_of_the_format_that_was_asked_for(digits, kind):
    address, _ = digits
    answer = ask(address, prompt="1", output_format=kind, size="32x32", model="x", user="y").json()
    content = base64.b64decode(answer["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(content)).format == kind.upper()
    assert answer["output_format"] == kind and answer["background"] == "opaque"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt: is missing"),
        ({"prompt": 3}, "prompt: expected text"),
        ({"prompt": "11"}, "one class of 0..9"),
        ({"prompt": "0-3"}, "one class of 0..9"),
        ({"prompt": "3", "n": 10**9}, "n: expected a whole number in 1..64"),
        ({"prompt": "3", "n": True}, "n: expected a whole number"),
        ({"prompt": "cat"}, "prompt must be one class of 0..9"),
        ({"prompt": "0-9"}, "prompt must be one class of 0..9"),
        ({"prompt": "3", "n": 2, "first_image": 2**32 - 1}, "found 4294967295 + 2"),
        ({"prompt": "3", "seed": -1}, "seed: expected a whole number"),
        ({"prompt": "3", "seed": 2**64}, "seed: expected a whole number"),
        ({"prompt": "3", "size": "1024x1024"}, "size must be auto or 32x32"),
        ({"prompt": "3", "response_format": "url"}, "response_format: expected"),
        ({"prompt": "3", "partial_images": 2}, "partial_images are sent with stream alone"),
        ({"prompt": "3", "stream": True, "partial_images": 4}, "partial_images: expected"),
        ({"prompt": "3", "top_p": 0}, "top_p must be"),
        ({"prompt": "3", "guidance": [1, 2, 3]}, "guidance takes one value, or one for each of"),
        ({"prompt": "3", "colour": "red"}, "colour: a field that is not known"),
        ({"prompt": "3" * 10**4}, "prompt: expected a class"),
    ],
)
def test_a_wrong_request_is_one_line(digits, fields, words):
    address, _ = digits
    answer = ask(address, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"] and len(error["message"]) < 400
    assert error["type"] == "invalid_request_error"


def test_what_is_no_request_is_one_line(digits):
    address, _ = digits
    json_type = {"content-type": "application/json"}
    for content, headers, status, words in (
        (b"{", json_type, 400, "expected JSON"),
        (b"[" * 60_000, json_type, 400, "expected JSON"),
        (b"[]", json_type, 400, "expected a JSON object"),
        (b"{}", {}, 415, "expected content-type application/json"),
        (b'{"prompt": "' + b"x" * (10 << 20), json_type, 413, "expected 65,536 bytes at most"),
    ):
        answer = httpx.post(address + GENERATIONS, content=content, headers=headers)
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
    for path in ("/v2", "/v1/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):
        assert httpx.get(address + path).status_code == 404
    assert httpx.get(address + "/v2").json()["error"]["message"] == "Not Found: GET /v2"
    assert ask(address, prompt="3", first_image=2**32 - 1).status_code == 200
    answer = httpx.get(address + GENERATIONS)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_a_picture_becomes_tokens_and_a_picture_again(digits, engine):
    address, _ = digits
    picture = Image.fromarray(own(engine, 4, 1, seed=2)[0])
    answer = tokens_of(address, as_file(picture)).json()
    expected = engine.encode([picture])[0]
    assert answer == {"tokens": expected.tolist(), "shape": [4, 4, 2]}
    back = httpx.post(address + "/v1/decode", json={"tokens": answer["tokens"]})
    found = np.asarray(Image.open(io.BytesIO(back.content)))
    np.testing.assert_array_equal(found, uint8_from_images(engine.decode(expected[None]))[0])
    large = as_file(picture.resize((200, 100)), "JPEG")
    assert tokens_of(address, large).json()["shape"] == [4, 4, 2]
    odd, vast = as_file(picture.resize((60, 30))), as_file(Image.new("RGB", (128, 40)))
    for query, content, words in (
        ("", b"none", "expected a picture"),
        ("?resize=x", b"", "resize must be a whole number"),
        ("?resize=65", large, "resize must be a whole number in 0..64"),
        ("?resize=0", odd, "image sides must be multiples of 8"),
        ("?resize=0", vast, "expected a picture of 4,096 pixels at most, found 128 x 40"),
    ):
        answer = tokens_of(address, content, query)
        assert (answer.status_code, words in answer.text) == (400, True), answer.text
    assert tokens_of(address, large, "?resize=64").json()["shape"] == [8, 8, 2]
    for tokens, words in (
        ([], "tokens must be"),
        ([[1]], "tokens[0][0]: expected a list"),
        ([[[1, 2]], [[1]]], "all rows alike"),
        ([[[1.5, 2]]], "tokens[0][0][0]: expected a whole number"),
        ([[["a", 2]]], "tokens[0][0][0]: expected a whole number"),
        ([["x" * 20_000] + [""] * 9], "tokens[0][0]: expected a list"),
        ([[[9**9, 0]] * 4] * 4, "oken"),
        ([[[0, 0, 0]] * 4] * 4, "oken"),
        ([[[0, 0]] * 13] * 5, "1 to 64 positions, found [5, 13, 2]"),
    ):
        answer = httpx.post(address + "/v1/decode", json={"tokens": tokens})
        assert answer.status_code == 400 and words in answer.text, answer.text
    assert (
        httpx.post(address + "/v1/decode", json={"tokens": [[[0, 0]] * 8] * 8}).status_code == 200
    )


def test_what_other_sites_may_send_unasked_is_no_request(digits):
    address, _ = digits
    picture = as_file(Image.new("RGB", (32, 32)))
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = tokens_of(address, picture, kind=kind)
        assert answer.status_code == 415 and "expected content-type image/*" in answer.text
    assert tokens_of(address, picture, kind="application/octet-stream").status_code == 200


def test_bodies_are_of_their_routes_sizes(digits):
    address, _ = digits
    json_type, spaces = {"content-type": "application/json"}, b" " * (70 << 10)
    for path, content, status in (
        (GENERATIONS, b'{"prompt": "1"}' + spaces, 413),
        ("/v1/decode", b'{"tokens": [[[0, 0], [0, 0]]]}', 200),
        ("/v1/decode", b'{"tokens": [[[0, 0], [0, 0]]]}' + spaces, 413),
    ):
        answer = httpx.post(address + path, content=content, headers=json_type)
        assert answer.status_code == status, answer.text
    assert tokens_of(address, b"x" * (17 << 20)).status_code == 413


def test_files_are_read_and_written_while_the_engine_is_busy(digits, monkeypatch):
    address, service = digits
    held, writers, write = threading.Event(), [], application.picture_bytes

    def written(*arguments):
        writers.append(threading.current_thread().name)
        return write(*arguments)

    monkeypatch.setattr(application, "picture_bytes", written)
    assert (
        httpx.post(address + "/v1/decode", json={"tokens": [[[0, 0], [0, 0]]]}).status_code == 200
    )
    assert writers and "m2kit-batcher" not in writers
    service.batcher.do(lambda: held.wait(30))
    began = time.perf_counter()
    answer = tokens_of(address, b"none")
    held.set()
    assert answer.status_code == 400 and time.perf_counter() - began < 20


def test_the_page_runs_its_own_script_alone(digits):
    address, _ = digits
    page = httpx.get(address)
    (script,) = re.findall("<script>(.*?)</script>", page.text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.headers["content-security-policy"]
    assert re.findall("script-src ([^;]*);", policy) == [f"'sha256-{own}'"]
    assert not re.search(r"<[^>]* on\w+=", page.text)  # which the policy would not run


def test_classes_are_searched(digits):
    address, _ = digits
    found = httpx.get(address + "/v1/classes").json()
    assert [one["id"] for one in found["data"]] == list(range(10))
    assert httpx.get(address + "/v1/classes?q=7").json()["data"][0]["id"] == 7
    assert httpx.get(address + "/v1/classes?q=none").json()["found"] == 0


def test_health_and_metrics(digits):
    address, _ = digits
    ask(address, prompt="1")
    assert httpx.get(address + "/healthz").json() == {"status": "ok"}
    text = httpx.get(address + "/metrics").text
    values = dict(re.findall(r"^(\w+(?:\{.*?\})?) ([\d.e+-]+)$", text, re.MULTILINE))
    assert float(values["m2kit_positions_total"]) >= 16
    assert (
        values["m2kit_request_seconds_count"] == values['m2kit_request_seconds_bucket{le="+Inf"}']
    )
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .*|\w+(\{le=\"[^\"]+\"\})? [\d.e+-]+", line), line
