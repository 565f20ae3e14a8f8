import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import GOLDEN
from doubles.hub_double import COMMIT, Hub, sha256

from m2kit.cli import cli
from m2kit.errors import CheckpointError, InputError
from m2kit.training.checkpoints import hub as ours
from m2kit.training.checkpoints.hub import HubFile, fetch, hub_file_from_address

constants = pytest.importorskip("huggingface_hub.constants")

REPO, NAME = "some-one/re.po_1", "sub folder/tokenizer_tiny.ckpt"
FILE = HubFile(REPO, NAME)
CONTENT = (GOLDEN / "tokenizer_tiny.ckpt").read_bytes()
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])  # of the right length


def point_to(monkeypatch, url):
    """What HF_ENDPOINT does, which the library reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    hub = Hub()
    hub.files[REPO, "main", NAME] = CONTENT
    with hub.running():
        point_to(monkeypatch, hub.url)
        yield hub


@pytest.fixture
def no_hub(cache, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(monkeypatch, f"http://127.0.0.1:{port}")


def refused(file=FILE):
    with pytest.raises(CheckpointError) as caught:
        fetch(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    return text


def blobs(cache):
    """Every file of the cache that holds bytes of a file."""
    return [
        path for path in cache.glob("models--*/**/*") if path.is_file() and "refs" not in path.parts
    ]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("hf://a/b/c.pt", HubFile("a/b", "c.pt")),
        ("hf://a/b/c.pt@v1", HubFile("a/b", "c.pt", "v1")),
        ("hf://a/b/c/d/e.pt@refs/pr/1", HubFile("a/b", "c/d/e.pt", "refs/pr/1")),
        ("hf://a/b/x@2.pt@main", HubFile("a/b", "x@2.pt")),
    ],
)
def test_an_address_names_repository_file_and_revision(address, file):
    assert hub_file_from_address(address) == file
    assert file.stem == Path(file.file).stem


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://a/b", "hf://a/b/", "hf://a/b/c@", "hf://a/b@main/c.pt", "hf:///b/c", "hf://a//c/d",
     "hf://a/b/../c", "hf://a/b/c/../../d", "hf://a/b/c@../../x", "hf://a/b/c\n", "hf://a/../c",
     "hf://a/b/c\\d", "hf://a b/c/d", "hf://a/b/c\udc80", "hf://a/b//c"],
)  # fmt: skip
def test_a_malformed_address_is_one_line_that_shows_the_form(address):
    with pytest.raises(InputError, match=r"expected hf://OWNER/REPO/FILE\[@REVISION\], such as hf"):
        hub_file_from_address(address)


def test_a_file_is_downloaded_once_and_then_taken_from_the_hubs_own_cache(hub, cache, monkeypatch):
    stages = []

    def begin(stage, total=None):
        stages.append([stage, total, 0])

        def advance(count):
            stages[-1][2] += count

        return advance

    path = fetch(FILE, begin)
    assert path.read_bytes() == CONTENT
    assert path == cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / NAME
    size_mb = math.ceil(len(CONTENT) / 1e6)
    assert ["downloading", size_mb, size_mb] in stages
    assert fetch(FILE) == path
    assert hub.gets() == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert fetch(FILE) == path
    assert not hub.asked


def test_a_download_in_chunks_of_xet_is_one_bar():
    """Its library tells of bytes written and of bytes on the wire, in two bars or in one."""
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    stages, done = [], []

    def begin(stage, total=None):
        stages.append((stage, total))
        return done.append

    bar = ours._bar(begin, FILE)
    with reporting.XetDownloadProgressReporter(
        reconstruction_desc="a", total=5 * 10**6, log_level=0, tqdm_class=bar
    ) as reporter:
        for count in (10**6, 2 * 10**6, 5 * 10**6):
            told = {"total_bytes": 5 * 10**6}
            for kind in ("total_bytes_complet", "total_transfer_bytes_complet"):
                told |= {f"{kind}ed": count, f"{kind}ion_rate": 1.0}
            reporter.update_progress(SimpleNamespace(**told))
    assert stages == [("downloading", 5)]
    assert sum(done) == 5


def test_without_a_network_the_cache_is_enough(hub, cache, monkeypatch):
    path = fetch(FILE)
    told = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_to(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
    assert fetch(FILE, lambda stage, total=None: told.append(stage)) == path
    assert any(stage.startswith("taking it from the cache (") for stage in told)


def test_a_revision_is_its_own_file(hub):
    other = HubFile(REPO, NAME, "refs/pr/1")
    hub.files[REPO, "refs/pr/1", NAME] = b"another"
    assert fetch(other).read_bytes() == b"another"
    assert fetch(FILE).read_bytes() == CONTENT


def test_wrong_bytes_of_the_right_length_are_refused_and_leave_the_cache(hub, cache):
    hub.sent[REPO, "main", NAME] = WRONG
    text = refused()
    assert f"sha256 is {sha256(CONTENT)}, found {len(WRONG)} bytes of another" in text
    assert text.endswith("it was removed from the cache; run it again")
    assert not blobs(cache)
    hub.sent.clear()
    assert fetch(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("offline", [False, True])
def test_a_file_that_was_damaged_in_the_cache_is_refused(hub, cache, monkeypatch, offline):
    path = fetch(FILE)
    path.resolve().write_bytes(WRONG)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert "sha256" in refused()
    assert not blobs(cache)


def test_a_cached_file_is_hashed_once(hub, monkeypatch):
    fetch(FILE)
    monkeypatch.setattr("m2kit.hashes.sha256_of_file", lambda path: pytest.fail("hashed again"))
    fetch(FILE)


def test_a_small_file_is_held_against_gits_hash(hub, cache):
    hub.small.add(NAME)
    assert fetch(FILE).read_bytes() == CONTENT
    fetch(FILE).resolve().write_bytes(WRONG)
    assert "git sha1" in refused()
    assert not blobs(cache)


def test_removing_wrong_bytes_removes_nothing_outside_the_cache(hub, cache, tmp_path):
    mine = tmp_path / "mine.ckpt"
    mine.write_bytes(WRONG)
    blob = fetch(FILE).resolve()
    blob.unlink()
    blob.symlink_to(mine)
    assert "sha256" in refused()
    assert mine.read_bytes() == WRONG
    assert not blob.is_symlink()


def test_where_the_cache_has_no_links_the_hub_tells_the_hash(hub, cache, monkeypatch):
    path = fetch(FILE)
    blob = path.resolve()
    path.unlink()
    blob.rename(path)
    assert fetch(FILE) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "found none; give its path if you trust the file" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path.write_bytes(WRONG)
    assert "sha256" in refused()


def test_a_body_that_is_too_short_is_refused(hub, cache):
    hub.sent[REPO, "main", NAME] = CONTENT[:100]
    assert re.search(r"no whole answer \(.*size", refused())
    assert not blobs(cache)


def test_a_connection_that_ends_early_each_time_is_given_up(hub, cache, monkeypatch, capfd):
    """The library goes on forever where each try brings something."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.cut = True
    assert "the connection ended early each time" in refused()
    assert not capfd.readouterr().err
    assert not blobs(cache)


def test_what_the_hub_lacks_is_one_line(hub):
    assert (
        f"expected a repository at {hub.url}/no/repo, found none that may be read (404)"
        in refused(HubFile("no/repo", NAME))
    )
    assert "found no v9; leave @REVISION out" in refused(HubFile(REPO, NAME, "v9"))
    assert f"found no x.pt in revision main; {hub.url}/{REPO}/tree/main lists" in refused(
        HubFile(REPO, "x.pt")
    )


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (401, "GatedRepo", "found it gated (401); accept its terms there and set HF_TOKEN"),
        (403, "GatedRepo", "found it gated (403)"),
        (401, "RepoNotFound", "none that may be read (401); check the name"),
        (403, "", "found it denied (403); set HF_TOKEN"),
        (503, "", "found 503 (Server error"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, status, code, text):
    hub.refused[REPO] = (status, code)
    assert text in refused()


def test_the_token_is_sent_to_the_hub_and_not_to_the_storage(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(FILE)
    for _, path, token in hub.asked:
        assert token == (None if path.startswith("/storage") else "Bearer hf_secret")


def test_without_a_network_and_a_cached_file_it_is_one_line_at_once(no_hub):
    began = time.monotonic()
    assert "check the network and HF_ENDPOINT, or give the path" in refused()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("silent", ["hub", "name server"])
def test_what_never_answers_is_given_up(cache, monkeypatch, silent):
    assert ours._ANSWER_SECONDS < 10
    monkeypatch.setattr(ours, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # never accepts
        point_to(monkeypatch, f"http://localhost:{server.getsockname()[1]}")
        if silent == "name server":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
        began = time.monotonic()
        assert "found no whole answer" in refused()
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("endpoint", ["no-scheme", "http://[", "ftp://x", ""])
def test_an_endpoint_that_is_none_is_one_line(cache, monkeypatch, endpoint):
    point_to(monkeypatch, endpoint)
    assert "check the network and HF_ENDPOINT" in refused()


def test_a_cache_that_cannot_be_written_is_one_line(hub, cache):
    cache.write_text("a file")
    assert f"cannot write to {cache}: " in refused()


def test_offline_without_a_cached_file_is_one_line(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"expected it in {cache}, found nothing, and HF_HUB_OFFLINE forbids" in refused()
    assert not hub.asked


def test_the_environment_says_where_hub_and_cache_are(hub, tmp_path):
    script = (
        "import sys; from m2kit.training.checkpoints.hub import *; "
        "print(fetch(hub_file_from_address(sys.argv[1])))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}

    def run(**more):
        command = [sys.executable, "-c", script, str(FILE)]
        done = subprocess.run(
            command, env=environment | more, capture_output=True, text=True, check=True
        )
        return Path(done.stdout.strip())

    path = run()
    assert path.is_relative_to(tmp_path / "home" / "hub")
    assert path.read_bytes() == CONTENT
    assert run(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:1") == path
    assert hub.gets() == 1
    assert all("/resolve/" in path for _, path, _ in hub.asked), "it is told more than that"


def test_every_command_that_takes_a_checkpoint_takes_an_address(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.files[REPO, "main", "ar.ckpt"] = (GOLDEN / "ar_tiny.ckpt").read_bytes()

    def run(*arguments):
        done = CliRunner().invoke(cli, [*map(str, arguments)])
        assert done.exit_code == 0, done.stderr
        return done

    run("export", "--ckpt", FILE)
    manifest = json.loads((tmp_path / "tokenizer_tiny.bundle" / "bundle.json").read_text())
    assert sha256(CONTENT) in json.dumps(manifest)
    told = run(
        "describe", f"hf://{REPO}/ar.ckpt", "--tokenizer", FILE, "--spec", '{"heads": 4}', "--json"
    )
    assert json.loads(told.stdout)["transformer_heads"] == 4
    assert f"asking for hf://{REPO}/ar.ckpt ...\ndownloading ...\n" in told.stderr
    quiet = run("describe", FILE, "-q", "--json")
    assert quiet.stderr == ""


def test_a_malformed_address_is_a_usage_error(tmp_path):
    for arguments in (["export", "--ckpt", "hf://x"], ["describe", "hf://x"]):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 2
        assert "expected hf://OWNER/REPO/FILE[@REVISION]" in done.stderr
