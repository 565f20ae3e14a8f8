"""Nothing leaves the process, and nothing is written that m2kit does not tell of."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")


MAIN = "from m2kit.cli import main; main()"


def generate(engine, home, output, prefix=(), script=MAIN):
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, "generate", "--engine", engine, "-o", output],
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        capture_output=True,
        text=True,
    )


def test_a_home_gets_m2kits_own_cache_alone(digits_engine, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = generate(digits_engine, home, tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(home)) for path in home.rglob("*")}
    assert written <= {".cache", ".cache/m2kit", ".cache/m2kit/hashed.json"}


def test_a_home_that_cannot_be_written_is_no_reason_to_warn(digits_engine, tmp_path):
    (tmp_path / "home").write_text("a file")
    done = generate(digits_engine, tmp_path / "home", tmp_path / "a.png")
    assert done.returncode == 0 and "\x1b" not in done.stderr
    assert not re.search("telemetry|warning", done.stderr, re.IGNORECASE)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_connection_and_no_look_up_leaves_the_process(digits_engine, tmp_path):
    """Telemetry looks its host up some seconds after a session has opened: waited for here. In
    /proc, as a home, nobody can write."""
    script = "import time; from m2kit.cli import cli; cli(standalone_mode=False); time.sleep(14)"
    sent = ("socket(", "connect(", "sendto(", "sendmsg(", "resolv.conf", "nsswitch.conf")

    def traced(home):
        log = tmp_path / f"{home.name}.log"
        calls = ("strace", "-f", "-qq", "-e", "trace=network,openat", "-o", str(log))
        done = generate(digits_engine, home, tmp_path / f"{home.name}.png", calls, script)
        return done, log

    (tmp_path / "home").mkdir()
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(traced, (tmp_path / "home", Path("/proc"))))
    for done, log in results:
        if "ptrace" in done.stderr.lower():
            pytest.skip("tracing is not permitted here")
        assert done.returncode == 0, done.stderr
        trace = log.read_text(errors="replace")
        assert str(digits_engine) in trace
        assert [line for line in trace.splitlines() if any(word in line for word in sent)] == []
